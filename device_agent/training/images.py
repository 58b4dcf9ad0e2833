"""A folder of pictures as a data set: one sub-folder a class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from device_agent.training.pictures import SUFFIXES, Resize, read_picture
from spliteasy.errors import DataError
from spliteasy.job.io_schema import Signature
from spliteasy.job.recipe import OWN_FUNCTION, classes_of, near, not_pictures
from spliteasy.job.spec import DataSpec

_NOT_CLASSES = frozenset({"__MACOSX", "@eaDir", "lost+found"})
"""Folders that systems leave beside one's own; those that begin with a dot are hidden."""


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """Items are (picture, class): float32 in 0 to 1, or uint8, [channels, height, width] as the job's input.

    `classes` numbers the sub-folders, of which some may be absent.
    """

    def __init__(
        self, folder: Path, signature: Signature, classes: tuple[str, ...], recipe: DataSpec | None
    ) -> None:
        picture, self._target = signature.inputs[0], signature.targets[0]
        self._channels, self._height, self._width = picture.shape
        self._resize: Resize = recipe.resize if recipe is not None else "none"
        self._bytes = picture.dtype == "uint8"
        self._mean = _by_channel(recipe.mean if recipe is not None else ())
        self._std = _by_channel(recipe.std if recipe is not None else ())
        for name in class_folders(folder):
            if name not in classes:
                source = "[data] classes of the job" if recipe is not None else "the training images"
                raise DataError(
                    f"{folder} has class {name!r}, which {source} don't have", hint=near(name, classes)
                )
        self._files: list[tuple[Path, int]] = []
        self.left_out: dict[str, int] = {}
        """Files that are no pictures which can be read, by suffix."""
        for number, name in sorted(enumerate(classes), key=lambda each: each[1]):
            for path in _files_in(folder / name):
                suffix = path.suffix.lower()
                if suffix in SUFFIXES:
                    self._files.append((path, number))
                else:
                    self.left_out[suffix] = self.left_out.get(suffix, 0) + 1
        if not self._files:
            raise DataError(f"{folder} has no images", hint="put them in one sub-folder per class")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, label = self._files[index]
        pixels = read_picture(
            path, channels=self._channels, height=self._height, width=self._width, resize=self._resize
        )
        target = torch.full(self._target.shape, label, dtype=getattr(torch, self._target.dtype))
        if self._bytes:
            return pixels.round().to(torch.uint8), target
        pixels = pixels / 255
        if self._mean is not None:
            pixels = pixels - self._mean
        return pixels if self._std is None else pixels / self._std, target


def class_folders(folder: Path) -> tuple[str, ...]:
    """The sub-folders of a folder that may be classes, in the order of their names."""
    return tuple(
        sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and not path.name.startswith(".") and path.name not in _NOT_CLASSES
        )
    )


def numbered_classes(folder: Path, signature: Signature, recipe: DataSpec | None) -> tuple[str, ...]:
    """The classes in the order of their numbers: as the job names them, or as the folder has them.

    A folder numbers them only where it has every class. Raises DataError.
    """
    _check_pillow()
    problem = not_pictures(signature)
    if problem is not None:
        raise DataError(problem, hint=OWN_FUNCTION)
    if recipe is not None:
        return recipe.classes
    found, classes = class_folders(folder), classes_of(signature)
    if found and len(found) != classes:
        raise DataError(
            f"{folder} has {len(found)} classes ({', '.join(found[:10])}), the model tells {classes} apart, "
            "and the job does not say which number each class has",
            hint='name all classes in the job file, [data] kind = "images", classes = ["…", "…"], and submit '
            "it again",
        )
    return found


def _files_in(folder: Path) -> Iterator[Path]:
    """The files of a class, also in folders below it, in the order of their names; hidden ones are not."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _NOT_CLASSES:
            continue
        if path.is_dir():
            yield from _files_in(path)
        else:
            yield path


def _by_channel(values: tuple[float, ...]) -> Tensor | None:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) if values else None


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError:
        raise DataError("reading a folder of images needs Pillow", hint="pip install pillow") from None
