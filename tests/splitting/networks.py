"""The networks that are split in tests, each with cuts worth trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module

import torch
from torch import Tensor, nn

from spliteasy.splitting.export import TracedModel, trace_model
from tests.models import chains, oddities, sequences, vision

Cuts = str | tuple[str, str]
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    cuts: tuple[Cuts, ...]
    sizes: tuple[int, ...] = (4, 4, 3)
    lr: float = 0.05


def _normal(*shape: int) -> Callable[[int], Batch]:
    return lambda batch: (torch.randn(batch, *shape),)


def _tokens(batch: int) -> Batch:
    return (torch.randint(0, 20, (batch, 12)),)


def _picture_and_row(batch: int) -> Batch:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 5)


_PICTURE, _ROW = _normal(3, 16, 16), _normal(6)
_BLOCKS: tuple[Cuts, ...] = (
    "blocks.0",
    ("blocks.0.norm2", "blocks.2.norm1"),
    ("blocks.0.attention.qkv", "norm"),
)

SMALL: dict[str, Network] = {
    "chain": Network(chains.Chain, _normal(1, 8, 8), ("stem", ("stem", "pool"), ("stem.1", "mid.1.0"))),
    "unet": Network(
        vision.UNet, _PICTURE, ("down1", ("enter", "up2"), ("down1", "up1"), ("enter.1", "up1.0"))
    ),
    "vit": Network(vision.ViT, _PICTURE, ("patches", *_BLOCKS)),
    "swin": Network(
        vision.Swin, _PICTURE, ("patches", ("stage1.0.qkv", "stage2.0"), ("stage1.1.norm", "merge"), "stage1")
    ),
    "dense": Network(
        vision.DenseBlock, _PICTURE, ("layers.1", ("enter", "layers.0.0"), ("enter", "layers.0.1"))
    ),
    "gpt": Network(sequences.GPT, _tokens, ("positions", *_BLOCKS)),
    "gpt with dropout": Network(partial(sequences.GPT, dropout=0.1), _tokens, ("drop", *_BLOCKS)),
    "masked transformer": Network(
        sequences.MaskedTransformer,
        _tokens,
        ("layer1", ("layer1.self_attn", "layer2.norm1"), ("layer1.linear1", "layer2")),
    ),
    "lstm": Network(sequences.Recurrent, _normal(9, 6), ("enter", ("enter", "norm"), ("rnn1", "rnn2"))),
    "gru": Network(
        partial(sequences.Recurrent, "gru"), _normal(9, 6), ("enter", ("enter", "norm"), ("rnn1", "rnn2"))
    ),
    "two inputs": Network(
        oddities.TwoInputs, _picture_and_row, (("table", "mid"), ("table", "late"), ("mid", "late"))
    ),
    "several outputs": Network(oddities.SeveralOutputs, _ROW, ("a", "b", ("a", "b"))),
    "written in place": Network(
        oddities.WrittenInPlace, _ROW, ("a", "act#1", ("a", "b"), ("b", "d"), ("act#1", "c"))
    ),
    "written across the cut": Network(
        oddities.WrittenAcrossTheCut, _ROW, ("a", ("a", "b"), ("b", "c"), ("a", "d"))
    ),
    "buffers": Network(oddities.Buffers, _ROW, ("b", ("b", "norm"), ("a", "b"), "norm")),
    "called again": Network(
        oddities.CalledAgain, _ROW, ("relu#1", "relu", ("relu#1", "relu#3"), ("a", "again"))
    ),
    "frozen": Network(oddities.Frozen, _ROW, ("a", "b", ("a", "norm"), ("b", "norm"))),
    "needs the batch size": Network(oddities.NeedsBatchSize, _ROW, ("a", ("a", "b"), ("codes", "b"))),
    "early weights": Network(oddities.EarlyWeights, _ROW, ("a", ("a", "tanh"), ("a", "b"))),
    "only a number": Network(oddities.OnlyANumber, _ROW, ("mean", ("mean", "b"), "a")),
    "transposed": Network(oddities.Transposed, _normal(3, 8, 8), ("a", "turn", ("a", "turn"), ("turn", "b"))),
    "easily lost": Network(
        oddities.EasilyLost, _ROW, ("a", ("a", "b"), ("b", "again.0"), ("again.1", "again"))
    ),
    "power iterations": Network(
        oddities.PowerIterations, _ROW, ("a", ("a", "b"), ("b", "mix"), ("c", "mix"))
    ),
    "noisy": Network(oddities.Noisy, _ROW, ("a", "drop", ("a", "b"), ("drop", "b"))),
}
"""Quick ones: every kind of model and of trouble."""


def _from_pytorchcv(family: str, name: str, side: int, **options: object) -> nn.Module:
    """A network of pytorchcv without weights; its last pooling takes any size, so that small pictures do."""
    network: nn.Module = getattr(import_module(f"pytorchcv.models.{family}"), name)(num_classes=10, **options)
    features = network.get_submodule("features")
    if side < 224:
        features.add_module("final_pool", nn.AdaptiveAvgPool2d(7 if family == "vgg" else 1))
    return network


def _large(family: str, name: str, side: int, *cuts: Cuts, lr: float = 0.01) -> Network:
    make = partial(_from_pytorchcv, family, name, side)
    return Network(make, _normal(3, side, side), cuts, (2, 2, 2), lr)


_STEM = "features.init_block"
_DENSE = (_STEM, (_STEM, "features.stage4"), ("features.stage1.unit2.conv1", "features.stage3.unit4.conv1"))
_MOBILE = (_STEM, (_STEM, "features.stage5"), ("features.stage2.unit2.conv1", "features.stage4.unit1.conv2"))
LARGE: dict[str, Network] = {
    "resnet50": _large(
        *("resnet", "resnet50", 64, _STEM, (_STEM, "features.stage4")),
        ("features.stage1.unit1.body.conv1", "features.stage3.unit2.body.conv2"),
    ),
    "vgg19": _large(
        *("vgg", "vgg19", 64, "features.stage1", ("features.stage1", "features.stage5")),
        ("features.stage2.unit1.conv", "output.fc1.activ"),
        lr=1e-4,
    ),
    "inceptionv3": _large(
        *("inceptionv3", "inceptionv3", 96, _STEM, (_STEM, "features.stage3")),
        (_STEM, "features.stage2.unit2.branches.branch2.conv_list.conv1"),
    ),
    "inceptionresnetv2": _large(
        *("inceptionresnetv2", "inceptionresnetv2", 139, "features.stage1", (_STEM, "features.stage3")),
        ("features.stage1.unit3.conv", "features.stage2.unit4.conv"),
    ),
    "densenet121": _large("densenet", "densenet121", 64, *_DENSE),
    "densenet201": _large("densenet", "densenet201", 64, *_DENSE),
    "mobilenetv2": _large("mobilenetv2", "mobilenetv2_w1", 64, *_MOBILE),
    "efficientnet_b0": _large("efficientnet", "efficientnet_b0", 64, *_MOBILE),
}
"""The networks of the paper's experiments, and two more."""

ALL = SMALL | LARGE


@cache
def traced(name: str) -> tuple[nn.Module, TracedModel]:
    """A network with fixed weights, traced; made once. Not to be changed."""
    torch.manual_seed(0)
    model = ALL[name].make().train()
    return model, trace_model(model, ALL[name].batch(2))
