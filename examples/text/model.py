"""A GPT of `transformers` with adapters of `peft` in frozen blocks, and what goes in and out."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

LENGTH, CHARACTERS = 128, 128
"""Characters of a sample, and the kinds that there are: ASCII."""
IGNORED = -100
"""Label of a place that is not counted."""
ADAPTED = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def build() -> nn.Module:
    """Blocks with random weights stand for pretrained ones: they are frozen, and adapters in them train.

    So do embeddings, positions and the last norm, which belong to the characters of this text.
    """
    config = GPT2Config(
        vocab_size=CHARACTERS,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    adapters = LoraConfig(
        r=8, lora_alpha=16, target_modules=ADAPTED, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model: nn.Module = get_peft_model(GPT2LMHeadModel(config), adapters)
    for name, parameter in model.named_parameters():
        if any(part in name for part in (".wte.", ".wpe.", ".ln_f.")):
            parameter.requires_grad_()
    return model


def example() -> tuple[dict[str, Tensor], Tensor]:
    """Two made-up texts: characters and a mask by keyword, and the character that comes after each."""
    characters = torch.randint(1, CHARACTERS, (2, LENGTH))
    return {"input_ids": characters, "attention_mask": torch.ones_like(characters)}, characters


def next_character(logits: Tensor, following: Tensor) -> Tensor:
    """Mean over the places that have a label; its exponential is the perplexity."""
    return F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=IGNORED)
