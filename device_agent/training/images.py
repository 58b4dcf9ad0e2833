"""A folder of images as a data set: one sub-folder a class, in the order of their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spliteasy.errors import DataError
from spliteasy.job.io_schema import Signature

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Items are (float32 [channels, height, width] in 0 to 1, class number).

    Grey or colour as the job's input has one channel or three; the size must be the job's already.
    """

    def __init__(self, folder: Path, signature: Signature, *, classes: tuple[str, ...] | None = None) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ModuleNotFoundError:
            raise DataError("reading a folder of images needs Pillow", hint="pip install pillow") from None
        shape = signature.inputs[0].shape
        if len(signature.inputs) != 1 or len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(
                f"the job's input is {', '.join(map(str, signature.inputs))}, which images don't fit",
                hint="write a function that returns a data set, and give it as --data module:function",
            )
        self._mode = "L" if shape[0] == 1 else "RGB"
        found = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        self.classes = found if classes is None else classes
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            raise DataError(f"{folder} has class {unknown[0]!r}, which the training images don't have")
        self._files = [
            (path, self.classes.index(name))
            for name in found
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not self._files:
            raise DataError(f"{folder} has no images", hint="put them in one sub-folder per class")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, UnidentifiedImageError

        path, label = self._files[index]
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert(self._mode))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path} can't be read as an image", hint=str(error)) from error
        tensor = torch.from_numpy(pixels).float() / 255
        return (tensor[None] if self._mode == "L" else tensor.permute(2, 0, 1)), label
