"""The device's data: where it comes from, and in which order it is used.

A batch is a pure function of (job seed, device, step): a restarted agent, and the check against plain
PyTorch, see the same samples with the same augmentation.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from device_agent.images import ImageFolder
from device_agent.samples import Samples, Tensors
from spliteasy import importing
from spliteasy.errors import DataError
from spliteasy.job import JobSpec
from spliteasy.job.signature import Signature, dtype_name, told
from spliteasy.randomness import seed_of

FINGERPRINT_ITEMS = 512
FINGERPRINT_BYTES = 32 << 20
"""The fingerprint reads about so much of a data set, spread evenly over it; all of a small one."""


@dataclass(frozen=True, slots=True)
class DeviceData:
    """What a device trains on, and what it is evaluated on (None: no evaluation)."""

    train: Dataset[Any]
    test: Dataset[Any] | None


def load_dataset(
    reference: str | DeviceData, device: str, signature: Signature, *, root: Path | None = None
) -> DeviceData:
    """The data that `reference` names; what is loaded already comes back as it is.

    `module:function`: called with the device id if it takes an argument; returns a map-style
    `torch.utils.data.Dataset`, or a pair of them (train, test). Each item is `(inputs, targets)`: a
    tensor, array or number each, or tuples of such where the job has several. A folder: images in one
    sub-folder per class, or in `train/` and `test/` with such sub-folders each.

    Raises DataError.
    """
    if isinstance(reference, DeviceData):
        return reference
    folder = Path(reference)
    if folder.is_dir():
        return _from_folder(folder, signature)
    if ":" not in reference:
        raise DataError(
            f"--data = {reference!r} is neither a folder nor module:function",
            hint="give a folder of images, or a function such as examples.digits:device_data",
        )
    function = importing.resolve(reference, root=root, what="--data", error=DataError)
    arguments = (device,) if _takes_an_argument(function) else ()
    found = importing.call(function, *arguments, reference=reference, what="--data", error=DataError)
    train, test = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    for dataset in (train, test):
        if dataset is not None or dataset is train:
            _check_dataset(dataset, reference)
    return DeviceData(train, test)


def _takes_an_argument(function: Any) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in kinds for p in inspect.signature(function).parameters.values())


def _check_dataset(dataset: Any, reference: str) -> None:
    if isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise DataError(
            f"--data = {reference!r} returned a {type(dataset).__name__}, not a data set",
            hint="return a torch.utils.data.Dataset with __len__ and __getitem__, or (train, test)",
        )


def _from_folder(folder: Path, signature: Signature) -> DeviceData:
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train = ImageFolder(folder / "train", signature)
        return DeviceData(train, ImageFolder(folder / "test", signature, classes=train.classes))
    return DeviceData(ImageFolder(folder, signature), None)


class Batches:
    """The training batches of a device: step 1 is the first of epoch 0."""

    def __init__(self, dataset: Dataset[Any], spec: JobSpec, signature: Signature, *, device: str) -> None:
        self._samples = Samples(dataset, spec, signature, device=device)
        self._spec = spec
        self._device = device
        whole, rest = divmod(len(self._samples), spec.batch_size)
        self.steps_per_epoch = whole if spec.drop_last or not rest else whole + 1
        if self.steps_per_epoch == 0:
            raise DataError(
                f"device {device} has {len(self._samples)} samples, and drop_last leaves none:"
                f" batch_size is {spec.batch_size}",
                hint="set drop_last = false, or a smaller batch_size",
            )
        self.total_steps = self.steps_per_epoch * spec.epochs
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Samples, not batches."""
        return len(self._samples)

    def epoch(self, step: int) -> int:
        """The epoch (0 is the first) that `step` belongs to."""
        if not 1 <= step <= self.total_steps:
            raise ValueError(f"step {step} is not in 1 to {self.total_steps}")
        return (step - 1) // self.steps_per_epoch

    def batch(self, step: int) -> tuple[Tensors, Tensors]:
        """(inputs, targets) of `step`, batch first. Raises DataError."""
        return self._samples.gather(self.indices(step), self.epoch(step))

    def indices(self, step: int) -> list[int]:
        """The samples of `step`, by their places in the data set."""
        start = (step - 1) % self.steps_per_epoch * self._spec.batch_size
        return self._permutation(self.epoch(step))[start : start + self._spec.batch_size]

    def _permutation(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of("order", self._spec.seed, self._device, epoch))
            self._order = (epoch, torch.randperm(len(self._samples), generator=generator).tolist())
        return self._order[1]

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over length, shapes and samples: tells whether it is the same data set.

        Reads a bounded part of a large data set. A data set that draws from other random sources than
        torch, numpy and random looks changed every time.
        """
        first = self._samples.gather([0], "fingerprint")
        item_bytes = max(1, sum(tensor.nbytes for tensor in (*first[0], *first[1])))
        wanted = max(2, min(FINGERPRINT_ITEMS, FINGERPRINT_BYTES // item_bytes, len(self)))
        indices = {round(i * (len(self) - 1) / (wanted - 1)) for i in range(wanted)}
        hasher = hashlib.blake2b(str(len(self)).encode(), digest_size=32)
        for index in sorted(indices):
            inputs, targets = self._samples.gather([index], "fingerprint")
            for tensor in (*inputs, *targets):
                hasher.update(told(dtype_name(tensor.dtype), tensor.shape).encode())
                hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()


class EvaluationBatches:
    """The test data in order, in batches of `evaluation.batch_size`."""

    def __init__(self, dataset: Dataset[Any], spec: JobSpec, signature: Signature, *, device: str) -> None:
        self._samples = Samples(dataset, spec, signature, device=device)
        self._size = spec.evaluation.batch_size
        self.samples = len(self._samples)

    def __len__(self) -> int:
        """Batches."""
        return -(-self.samples // self._size)

    def batch(self, index: int) -> tuple[Tensors, Tensors]:
        """(inputs, targets) of batch `index`, 0 to len - 1. Raises DataError."""
        start = index * self._size
        return self._samples.gather(range(start, min(start + self._size, self.samples)), "evaluation")
