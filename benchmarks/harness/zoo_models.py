"""Models of other people's libraries as `benchmarks.zoo` tries them: small configurations, random weights.

Nothing is downloaded. Each model is what its library gives, called as its users call it: by keywords.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]

VOCABULARY, LENGTH, SIDE, LABELS = 61, 9, 32, 5
"""Of the small configurations: tokens, tokens a text, pixels a side, classes."""

_WIDE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": 24, "pad_token_id": 0, "num_labels": LABELS,
}  # fmt: skip
_LLAMA: dict[str, Any] = _WIDE | {"num_key_value_heads": 1, "head_dim": 8}
_PICTURE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 8, "num_labels": LABELS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ZooModel:
    """How to build a model, and a batch of so many samples for it. `blocks`: what its blocks' paths match."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Inputs]
    blocks: str
    """A regular expression of the module paths between which it is cut."""
    shared: tuple[str, ...] = ()
    """Inputs that may leave the device: masks of models that read them again behind their embeddings."""
    lr: float = 0.05


def tokens(count: int) -> Inputs:
    """Texts of several lengths, padded at the end, and the mask that says so."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(2, VOCABULARY, (count, LENGTH), generator=generator)
    lengths = 4 + torch.arange(count) % (LENGTH - 3)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def pictures(count: int) -> Inputs:
    generator = torch.Generator().manual_seed(count)
    return {"pixel_values": torch.randn(count, 3, SIDE, SIDE, generator=generator)}


def large_pictures(count: int) -> Inputs:
    generator = torch.Generator().manual_seed(count)
    return {"x": torch.randn(count, 3, 224, 224, generator=generator)}


def sequences(count: int) -> Inputs:
    """What an encoder reads and what a decoder is given."""
    given = tokens(count)
    return {**given, "decoder_input_ids": given["input_ids"].flip(1)}


def sounds(name: str, *shape: int) -> Callable[[int], Inputs]:
    def batch(count: int) -> Inputs:
        return {name: torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))}

    return batch


def texts_and_pictures(count: int) -> Inputs:
    return {**tokens(count), **pictures(count)}


def _transformer(model: str, config: str, options: Mapping[str, Any], attention: str) -> nn.Module:
    library: Any = import_module("transformers")
    settings = getattr(library, config)(**options)
    settings._attn_implementation = attention
    made: nn.Module = getattr(library, model)(settings)
    return made


def _adapted(base: Callable[[], nn.Module], targets: list[str], **options: Any) -> nn.Module:
    """The model with adapters around the layers that `targets` names, which alone train."""
    library: Any = import_module("peft")
    made: nn.Module = library.get_peft_model(
        base(), library.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=targets, **options)
    )
    for name, parameter in made.named_parameters():
        if "lora_B" in name:  # which begin at zero, so that no gradient would reach the others
            nn.init.normal_(parameter, std=0.1)
    return made


def _pytorchcv(family: str, name: str) -> nn.Module:
    made: nn.Module = getattr(import_module(f"pytorchcv.models.{family}"), name)(num_classes=LABELS)
    return made


_T5 = {
    "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 24,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_TINY_TEXT = _WIDE | {"projection_dim": 8, "eos_token_id": 1, "bos_token_id": 2}

_TRANSFORMERS: dict[str, tuple[str, str, Mapping[str, Any], Callable[[int], Inputs], str]] = {
    "BERT": ("BertForSequenceClassification", "BertConfig", _WIDE, tokens, r"encoder\.layer\.\d+"),
    "BERT, masked words": ("BertForMaskedLM", "BertConfig", _WIDE, tokens, r"encoder\.layer\.\d+"),
    "RoBERTa": (
        "RobertaForSequenceClassification", "RobertaConfig", _WIDE, tokens, r"encoder\.layer\.\d+",
    ),
    "DistilBERT": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2,
         "max_position_embeddings": 24, "num_labels": LABELS},
        tokens, r"transformer\.layer\.\d+",
    ),
    "ALBERT": (
        "AlbertForSequenceClassification", "AlbertConfig", _WIDE | {"embedding_size": 12}, tokens,
        r"albert\.embeddings|albert\.encoder\.embedding_hidden_mapping_in|albert\.encoder|albert\.pooler",
    ),
    "DeBERTa v2": (
        "DebertaV2ForSequenceClassification", "DebertaV2Config",
        _WIDE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4,
                 "share_att_key": True, "pooler_hidden_size": 16},
        tokens, r"deberta\.embeddings|encoder\.layer\.\d+",
    ),
    "ELECTRA": (
        "ElectraForSequenceClassification", "ElectraConfig", _WIDE | {"embedding_size": 12}, tokens,
        r"encoder\.layer\.\d+",
    ),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, tokens, r"transformer\.h\.\d+"),
    "OPT": (
        "OPTForCausalLM", "OPTConfig",
        _WIDE | {"ffn_dim": 24, "word_embed_proj_dim": 16, "bos_token_id": 1, "eos_token_id": 1},
        tokens, r"decoder\.layers\.\d+",
    ),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA, tokens, r"model\.layers\.\d+"),
    "Mistral": (
        "MistralForCausalLM", "MistralConfig", _LLAMA | {"sliding_window": 4}, tokens, r"model\.layers\.\d+",
    ),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _LLAMA, tokens, r"model\.layers\.\d+"),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _LLAMA, tokens, r"model\.layers\.\d+"),
    "Phi-3": (
        "Phi3ForCausalLM", "Phi3Config", _LLAMA | {"eos_token_id": 1, "bos_token_id": 2}, tokens,
        r"model\.layers\.\d+",
    ),
    "Gemma 3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig", _LLAMA | {"sliding_window": 4}, tokens,
        r"model\.layers\.\d+",
    ),
    "Mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 4,
         "pad_token_id": 0},
        lambda count: {"input_ids": tokens(count)["input_ids"]}, r"backbone\.layers\.\d+",
    ),
    "T5": (
        "T5ForConditionalGeneration", "T5Config", _T5, sequences,
        r"(encoder|decoder)\.(block\.\d+|final_layer_norm)|shared|encoder\.dropout",
    ),
    "BART": (
        "BartForConditionalGeneration", "BartConfig", _BART, sequences, r"(encoder|decoder)\.layers\.\d+",
    ),
    "ViT": ("ViTForImageClassification", "ViTConfig", _PICTURE, pictures, r"(encoder\.)?layers?\.\d+"),
    "DeiT": ("DeiTForImageClassification", "DeiTConfig", _PICTURE, pictures, r"(encoder\.)?layers?\.\d+"),
    "DINOv2": (
        "Dinov2ForImageClassification", "Dinov2Config", _PICTURE | {"mlp_ratio": 2}, pictures,
        r"(encoder\.)?layers?\.\d+",
    ),
    "Swin v2": (
        "Swinv2ForImageClassification", "Swinv2Config",
        {"image_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2],
         "window_size": 4, "num_labels": LABELS},
        pictures, r"encoder\.layers\.\d+\.blocks\.\d+",
    ),
    "SegFormer": (
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 2, 2, 2], "depths": [1, 1, 1, 1],
         "decoder_hidden_size": 16, "num_labels": LABELS},
        pictures, r"stages\.\d+\.blocks\.\d+",
    ),
    "Whisper, encoder": (
        "WhisperForAudioClassification", "WhisperConfig",
        {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
         "num_mel_bins": 8, "max_source_positions": 10, "num_labels": LABELS, "vocab_size": VOCABULARY,
         "decoder_layers": 1, "decoder_attention_heads": 2, "pad_token_id": 0},
        sounds("input_features", 8, 20), r"encoder\.layers\.\d+",
    ),
    "Wav2Vec2": (
        "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
         "conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_labels": LABELS,
         "mask_time_prob": 0.0, "layerdrop": 0.0, "vocab_size": VOCABULARY},
        sounds("input_values", 400), r"encoder\.layers\.\d+",
    ),
    "CLIP": (
        "CLIPModel", "CLIPConfig",
        {"text_config": _TINY_TEXT, "vision_config": _PICTURE | {"projection_dim": 8}, "projection_dim": 8},
        texts_and_pictures, r".*encoder\.layers\.\d+",
    ),
}  # fmt: skip
"""By name: class, configuration and its options, a batch, and the blocks."""

_SHARING = {"DeBERTa v2": ("attention_mask",), "ALBERT": ("attention_mask",)}

_ONLY_EAGER = ("DeBERTa v2", "Mamba", "Swin v2")
"""Models that have no other attention."""

_PYTORCHCV = {
    "MobileNetV3": ("mobilenetv3", "mobilenetv3_small_w7d20"),
    "ShuffleNetV2": ("shufflenetv2", "shufflenetv2_wd2"),
}


def zoo() -> dict[str, ZooModel]:
    """All models by name: of transformers with both kinds of attention, with adapters, and of pytorchcv."""
    models: dict[str, ZooModel] = {}
    for name, (model, config, options, batch, blocks) in _TRANSFORMERS.items():
        for attention in ("eager",) if name in _ONLY_EAGER else ("eager", "sdpa"):
            make = partial(_transformer, model, config, options, attention)
            models[f"{name}, {attention}"] = ZooModel(make, batch, blocks, _SHARING.get(name, ()))
    for name, targets in (("Llama", ["q_proj", "v_proj"]), ("BERT", ["query", "value"])):
        base = models[f"{name}, sdpa"]
        for kind, dora in (("LoRA", False), ("DoRA", True)):
            make = partial(_adapted, base.make, targets, use_dora=dora)
            models[f"{name} with {kind}"] = ZooModel(make, base.batch, base.blocks)
    for name, builder in _PYTORCHCV.items():
        make = partial(_pytorchcv, *builder)
        models[name] = ZooModel(make, large_pictures, r"features\.stage\d+\.unit\d+", lr=1e-3)
    return models
