"""Picture models of timm and torchvision as `benchmarks.zoo` tries them: one or two of each family.

Nothing is downloaded: weights are random, and configurations are made small where a family has a knob for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.harness.zoo_models import LABELS, Inputs, ZooModel

ANYWHERE = r"[^.#]+(\.[^.#]+){0,2}"
"""Picture models are cut behind any module that lies no deeper than two others."""

_PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
_WINDOWS = {
    "img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 2), "num_heads": (1, 2, 2),
}  # fmt: skip

_TIMM: dict[str, tuple[int, Mapping[str, Any]]] = {
    "beit_base_patch16_224": (32, _PLAIN),
    "cait_xxs24_224": (32, _PLAIN),
    "coat_lite_tiny": (64, {"img_size": 64}),
    "convit_tiny": (32, {"img_size": 32, "patch_size": 8, "depth": 3, "local_up_to_layer": 2}),
    "convnext_atto": (64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}),
    "crossvit_tiny_240": (240, {}),
    "cspresnet50": (64, {}),
    "darknet17": (64, {}),
    "davit_tiny": (64, {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 32, 64), "num_heads": (1, 2, 2, 2)}),
    "deit_tiny_distilled_patch16_224": (32, _PLAIN),
    "densenet121": (64, {}),
    "dla46_c": (64, {}),
    "dpn48b": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (224, {}),
    "efficientnet_lite0": (64, {}),
    "eva02_tiny_patch14_224": (32, _PLAIN),
    "ghostnet_050": (64, {}),
    "hrnet_w18_small": (64, {}),
    "lcnet_035": (64, {}),
    "poolformer_s12": (64, {}),
    "mobilevit_xxs": (64, {}),
    "test_nfnet": (64, {}),
    "regnetx_002": (64, {}),
    "swin_tiny_patch4_window7_224": (64, _WINDOWS),
    "vit_tiny_patch16_224": (32, _PLAIN),
}
"""The models by their names in timm: pixels a side, and options that make them small."""

_FIRST_CALL = ("convit_tiny",)
"""Models that make a table of indices in their first call: a factory calls them once."""

_TORCHVISION: dict[str, tuple[tuple[int, ...], Mapping[str, Any]]] = {
    "convnext_tiny": ((64, 64), {}),
    "efficientnet_b0": ((64, 64), {}),
    "googlenet": ((96, 96), {"aux_logits": False, "init_weights": False}),
    "mobilenet_v3_small": ((64, 64), {}),
    "resnet18": ((64, 64), {}),
    "shufflenet_v2_x0_5": ((64, 64), {}),
    "squeezenet1_1": ((64, 64), {}),
    "swin_t": ((64, 64), {}),
    "vgg11_bn": ((64, 64), {}),
    "vit_b_32": ((64, 64), {"image_size": 64}),
    "lraspp_mobilenet_v3_large": ((64, 64), {"weights_backbone": None}),
    "r3d_18": ((4, 32, 32), {}),
}
"""The models by their names in torchvision: height and width, or frames, height and width, and options."""

_MADE_BY_HAND = list[torch.library.Library]()
"""The definitions of torchvision's operators that this process has made; they last as long as this does."""


def torchvision() -> Any:
    """Return the module, where its operators were compiled for another build of torch too.

    Importing it asks for two operators of object detection by name. No model here calls one.
    """
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    _MADE_BY_HAND.append(library)
    return import_module("torchvision")


def shaped(name: str, *shape: int) -> Callable[[int], Inputs]:
    """A batch of so many pictures, or films."""

    def batch(count: int) -> Inputs:
        return {name: torch.randn(count, 3, *shape, generator=torch.Generator().manual_seed(count))}

    return batch


def _of_timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    torchvision()  # which timm imports
    library: Any = import_module("timm")
    made: nn.Module = library.create_model(name, num_classes=LABELS, **options)
    if name in _FIRST_CALL:
        made(torch.zeros(1, 3, options["img_size"], options["img_size"]))
    return made


def _of_torchvision(name: str, options: Mapping[str, Any]) -> nn.Module:
    made: nn.Module = torchvision().models.get_model(name, weights=None, num_classes=LABELS, **options)
    return made


def picture_zoo() -> dict[str, ZooModel]:
    """All of both libraries by name; the first word is the library's."""
    models: dict[str, ZooModel] = {}
    for name, (side, options) in _TIMM.items():
        make = partial(_of_timm, name, options)
        models[f"timm {name}"] = ZooModel(make, shaped("x", side, side), ANYWHERE, lr=1e-3)
    for name, (shape, more) in _TORCHVISION.items():
        make = partial(_of_torchvision, name, more)
        named = "input" if "weights_backbone" in more else "x"  # models of segmentation name it otherwise
        models[f"torchvision {name}"] = ZooModel(make, shaped(named, *shape), ANYWHERE, lr=1e-3)
    return models


def is_installed(name: str) -> bool:
    """Return whether the library of that model of `picture_zoo` is installed."""
    return all(find_spec(each) for each in {"torchvision", name.partition(" ")[0]})
