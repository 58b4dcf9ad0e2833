"""One picture from a file: upright, in the model's channels and size, as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from spliteasy.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
Resize = Literal["none", "stretch", "crop", "pad"]

_DEEP = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes of 16 bits a pixel; "I" has 32, of which older versions use 16 for PNG files."""

_DEEP_WHITE, _WHITE = 65535, 255


def read_picture(path: Path, *, channels: int, height: int, width: int, resize: Resize) -> Tensor:
    """float32 [channels, height, width], 0 for black to 255 for white. Raises DataError, naming the file.

    The file's orientation (EXIF) is applied; a palette, CMYK and 16 bits are converted; what is transparent
    lies on white.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = _in_channels(ImageOps.exif_transpose(opened), channels, path)
            image = _in_size(image, (width, height), resize, path)
            pixels = np.asarray(image, dtype=np.float32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} can't be read as an image", hint=str(error)) from error
    pixels = np.repeat(pixels[None], channels, axis=0) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _in_channels(image: Image, channels: int, path: Path) -> Image:
    """Grey ("L", or "F" from 16 bits) or colour ("RGB"), white being 255."""
    from PIL import Image as images

    if image.mode in _DEEP:
        values = np.asarray(image, dtype=np.float32)
        if values.min() < 0 or values.max() > _DEEP_WHITE:
            raise DataError(f"{path} has more than 16 bits a pixel, whose white is unknown", hint=_CONVERT)
        return images.fromarray(values * np.float32(_WHITE / _DEEP_WHITE))
    if image.mode == "F":
        raise DataError(f"{path} holds numbers with fractions, whose white is unknown", hint=_CONVERT)
    if image.has_transparency_data:
        below = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(below, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


_CONVERT = "convert it to 8 or 16 bits a pixel"


def _in_size(image: Image, size: tuple[int, int], resize: Resize, path: Path) -> Image:
    """`image` at `size` (width, height)."""
    from PIL import Image as images
    from PIL import ImageOps

    if image.size == size:
        return image
    how = images.Resampling.BILINEAR
    match resize:
        case "stretch":
            return image.resize(size, how)
        case "crop":
            return ImageOps.fit(image, size, how)
        case "pad":
            return ImageOps.pad(image, size, how)
    raise DataError(
        f"{path} has {image.size[0]} × {image.size[1]} pixels, the model takes {size[0]} × {size[1]}",
        hint='say how to make them fit in the job file, [data] kind = "images", classes = ["…"], resize = '
        '"crop" (or "pad", "stretch"), and submit it again',
    )
