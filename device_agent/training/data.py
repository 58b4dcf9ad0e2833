"""The device's data: where it comes from, and in which order it is used.

A batch is a pure function of (the device's key for the job, step): a restarted agent, and the check against
plain PyTorch, see the same samples with the same augmentation, and nobody else can tell which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from device_agent.training.data_function import data_sets_of
from device_agent.training.images import ImageFolder, numbered_classes
from device_agent.training.samples import Samples, Tensors
from spliteasy.errors import DataError
from spliteasy.job import JobSpec
from spliteasy.job.io_schema import Signature, dtype_name, told
from spliteasy.job.micro_batches import micro_sizes, split_batch
from spliteasy.job.spec import DataSpec
from spliteasy.privacy.defences.dp import PoissonBatches
from spliteasy.privacy.defences.label_dp import RandomizedResponse, classes_to_answer
from spliteasy.privacy.defences.peer_labels import LOOKS, features_of, peer_labels
from spliteasy.privacy.numbers import permutation
from spliteasy.runtime import user_code
from spliteasy.runtime.randomness import Key

FINGERPRINT_ITEMS = 512
GATHERED = 64
"""Samples that are loaded at a time to compare them."""

FINGERPRINT_BYTES = 32 << 20
"""The fingerprint reads about so much of a data set, spread evenly over it; all of a small one."""


@dataclass(frozen=True, slots=True)
class DeviceData:
    """The data that a device trains on, and that it is evaluated on (None: there is no evaluation)."""

    train: Dataset[Any]
    test: Dataset[Any] | None
    notes: tuple[str, ...] = ()
    """Notes for a person on how the data was read."""


def load_dataset(
    reference: str | DeviceData,
    device: str,
    signature: Signature,
    *,
    root: Path | None = None,
    recipe: DataSpec | None = None,
) -> DeviceData:
    """The data that `reference` names; what is loaded already comes back as it is.

    `module:function`: a function that `data_function.py` calls. A folder: images in one sub-folder
    per class, or in `train/` and `test/` with such sub-folders each, read by the job's `recipe`. Each item of
    a data set is `(inputs, targets)`: a tensor, array or number each, or tuples of such where the job has
    several; or a dictionary by the job's names of them.

    Raises DataError.
    """
    if isinstance(reference, DeviceData):
        return reference
    folder = Path(reference)
    if folder.is_dir():
        return _from_folder(folder, signature, recipe)
    if ":" not in reference:
        raise DataError(
            f"--data = {reference!r} is neither a folder nor module:function",
            hint="give a folder of images, or a function such as examples.digits:device_data",
        )
    function = user_code.resolve(reference, root=root, what="--data", error=DataError)
    return DeviceData(*data_sets_of(function, device, reference))


def _from_folder(folder: Path, signature: Signature, recipe: DataSpec | None) -> DeviceData:
    parts = [folder / "train", folder / "test"]
    divided = all(part.is_dir() for part in parts)
    classes = numbered_classes(parts[0] if divided else folder, signature, recipe)
    sets = [ImageFolder(part, signature, classes, recipe) for part in (parts if divided else [folder])]
    numbers = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
    notes = [
        f"class numbers, by the job: {numbers}"
        if recipe is not None
        else f"class numbers, by the names in this folder: {numbers}; name the classes in the job file "
        "([data] classes), so that every device numbers them alike"
    ]
    for part, found in zip(parts if divided else [folder], sets, strict=True):
        left_out = ", ".join(
            f"{count} {suffix or 'without suffix'}" for suffix, count in found.left_out.items()
        )
        if left_out:
            notes.append(f"{part}: files that can't be read as pictures are left out: {left_out}")
    return DeviceData(sets[0], sets[1] if divided else None, tuple(notes))


class BatchOrder:
    """The training batches of a device: step 1 is the first of epoch 0."""

    def __init__(
        self,
        dataset: Dataset[Any],
        spec: JobSpec,
        signature: Signature,
        *,
        device: str,
        key: Key,
        labels: Key,
    ) -> None:
        """`key` is the device's for the job, `labels` what its answers for labels are drawn from."""
        self._samples = Samples(dataset, spec, signature, device=device, key=key, name="training")
        self._device = device
        self._spec = spec
        self._key = key.at("order")
        self.poisson: PoissonBatches | None = None
        whole, rest = divmod(len(self._samples), spec.batch_size)
        self.steps_per_epoch = whole if spec.drop_last or not rest else whole + 1
        if spec.privacy.dp is not None:
            self.poisson = PoissonBatches(spec, len(self._samples), self._key, device=device)
            self.steps_per_epoch, rest = self.poisson.steps_per_epoch, 0
        if self.steps_per_epoch == 0:
            raise DataError(
                f"device {device} has {len(self._samples)} samples, and drop_last leaves none:"
                f" batch_size is {spec.batch_size}",
                hint="set drop_last = false, or a smaller batch_size",
            )
        self._check_last_batch(rest, signature.least_samples)
        self.total_steps = self.steps_per_epoch * spec.epochs
        self.total_steps -= self.total_steps % spec.accumulate
        if self.total_steps == 0:
            raise DataError(
                f"device {device} has {self.steps_per_epoch * spec.epochs} batches in all, fewer than "
                f"accumulate = {spec.accumulate}: the optimizer would never step",
                hint="use more epochs, a smaller batch_size or a smaller accumulate",
            )
        self._order: tuple[int, list[int]] = (-1, [])
        self._classes = 0
        self._answers: RandomizedResponse | None = None
        epsilon = spec.privacy.label_dp
        if epsilon is not None or spec.privacy.peer_labels:
            self._classes = classes_to_answer(spec, signature)
        if epsilon is not None:
            own = labels.at(self.fingerprint, f"{epsilon!r}")
            self._answers = RandomizedResponse(epsilon, self._classes, own)

    def __len__(self) -> int:
        """Samples, not batches."""
        return len(self._samples)

    def _check_last_batch(self, samples: int, least: int) -> None:
        """Refuse an epoch whose last batch, of so many samples, the model can't be trained on."""
        spec = self._spec
        if spec.drop_last or not samples or min(micro_sizes(samples, spec.micro_batches)) >= least:
            return
        parts = f", in {spec.micro_batches} micro-batches" if spec.micro_batches > 1 else ""
        raise DataError(
            f"device {self._device} has {len(self)} samples: at batch_size {spec.batch_size} an epoch's last "
            f"batch has {samples}{parts}, so that batch norm would get 1 sample, which has no variance",
            hint="set drop_last = true in the job, or another batch_size",
        )

    def epoch(self, step: int) -> int:
        """The epoch (0 is the first) that `step` belongs to."""
        if not 1 <= step <= self.total_steps:
            raise ValueError(f"step {step} is not in 1 to {self.total_steps}")
        return (step - 1) // self.steps_per_epoch

    def batch(self, step: int) -> tuple[Tensors, Tensors]:
        """(inputs, targets) of `step`, batch first. Raises DataError."""
        return self._gathered(self.indices(step), step)

    def _gathered(self, indices: list[int], step: int) -> tuple[Tensors, Tensors]:
        inputs, targets = self._samples.gather(indices, self.epoch(step))
        if self._spec.privacy.peer_labels:
            targets = (self._peer_labels[indices],)
        elif self._answers is not None:
            targets = (self._answers.answer(targets[0], indices),)
        return inputs, targets

    @property
    def have_lengths(self) -> bool:
        """Return whether samples have a length of their own."""
        return self._spec.model.max_length is not None

    def micro_batches(self, step: int) -> list[tuple[Tensors, Tensors]]:
        """(inputs, targets) of each micro-batch of `step`; where samples have a length, each is padded to its
        own longest. Raises DataError."""
        spec = self._spec
        if not self.have_lengths:
            inputs, targets = self.batch(step)
            parts = (split_batch(each, spec.micro_batches) for each in (inputs, targets))
            return list(zip(*parts, strict=True))
        indices, made = self.indices(step), []
        for size in micro_sizes(len(indices), spec.micro_batches):
            made.append(self._gathered(indices[:size], step))
            indices = indices[size:]
        return made

    def samples(self, step: int) -> list[list[Tensor]]:
        """The samples of `step` as the data set makes them: inputs, then targets of each, not padded."""
        return self._samples.rows(self.indices(step), self.epoch(step))

    def is_empty(self, step: int) -> bool:
        """Return whether no sample was drawn for `step`: its batch has one that counts for nothing."""
        return self.poisson is not None and not self.poisson.draw(step)

    def indices(self, step: int) -> list[int]:
        """The samples of `step`, by their places in the data set."""
        if self.poisson is not None:
            return self.poisson.draw(step) or [0]
        start = (step - 1) % self.steps_per_epoch * self._spec.batch_size
        return self._permutation(self.epoch(step))[start : start + self._spec.batch_size]

    def problem(self, inputs: Tensors, targets: Tensors, indices: Sequence[int]) -> DataError | None:
        """The first value that is NaN or infinite in a batch; None where all are finite."""
        return self._samples.problem(inputs, targets, indices)

    def _permutation(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            self._order = (epoch, permutation(len(self._samples), self._key.at(epoch)).tolist())
        return self._order[1]

    @cached_property
    def _peer_labels(self) -> Tensor:
        """The label of each sample by the others; where there is label_dp, by their answers."""
        looks, targets = [self._look(0)], []
        while len(looks) < LOOKS and not torch.equal(looks[0], again := self._look(len(looks))):
            looks.append(again)
        for indices in self._chunks():
            (given,) = self._samples.gather(indices, "peers", 0)[1]
            targets.append(given if self._answers is None else self._answers.answer(given, indices))
        return peer_labels(looks, torch.cat(targets), self._classes, self._key.at("peers"))

    def _look(self, number: int) -> Tensor:
        """Return what all samples are compared by, under one draw of their augmentation."""
        parts = [self._samples.gather(indices, "peers", number)[0] for indices in self._chunks()]
        return torch.cat([features_of(inputs, self._key) for inputs in parts])

    def _chunks(self) -> list[range]:
        return [range(at, min(at + GATHERED, len(self))) for at in range(0, len(self), GATHERED)]

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over length, shapes and samples: tells whether it is the same data set.

        Reads a bounded part of a large data set. A data set that draws from other random sources than
        torch, numpy and random looks changed every time.
        """
        first = self._samples.gather([0], "fingerprint")
        item_bytes = max(1, sum(tensor.nbytes for tensor in (*first[0], *first[1])))
        wanted = max(2, min(FINGERPRINT_ITEMS, FINGERPRINT_BYTES // item_bytes, len(self)))
        indices = sorted({round(i * (len(self) - 1) / (wanted - 1)) for i in range(wanted)})
        hasher = hashlib.blake2b(str(len(self)).encode(), digest_size=32)
        for at in range(0, len(indices), GATHERED):
            inputs, targets = self._samples.gather(indices[at : at + GATHERED], "fingerprint")
            columns = [column.contiguous() for column in (*inputs, *targets)]
            for row in range(len(columns[0])):
                for tensor in (column[row : row + 1] for column in columns):
                    hasher.update(told(dtype_name(tensor.dtype), tensor.shape).encode())
                    hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()


class EvaluationBatches:
    """The test data in batches of `evaluation.batch_size`, in another order at each evaluation.

    In one order, what crosses would tell how each sample's activations change with the head.
    """

    def __init__(
        self, dataset: Dataset[Any], spec: JobSpec, signature: Signature, *, device: str, key: Key
    ) -> None:
        self._samples = Samples(dataset, spec, signature, device=device, key=key, name="test")
        self._key = key.at("evaluation")
        self._order: tuple[int, list[int]] = (-1, [])
        self._size = spec.evaluation.batch_size
        self.samples = len(self._samples)

    def __len__(self) -> int:
        """BatchOrder."""
        return -(-self.samples // self._size)

    def batch(self, index: int, step: int) -> tuple[Tensors, Tensors]:
        """(inputs, targets) of batch `index`, 0 to len - 1, after `step`. Raises DataError."""
        return self._samples.gather(self.indices(index, step), "evaluation")

    def indices(self, index: int, step: int) -> list[int]:
        """The samples of batch `index` after `step`, by their places in the data set."""
        if self._order[0] != step:
            self._order = (step, permutation(self.samples, self._key.at(step)).tolist())
        start = index * self._size
        return self._order[1][start : start + self._size]

    def problem(self, inputs: Tensors, targets: Tensors, indices: Sequence[int]) -> DataError | None:
        """The first value that is NaN or infinite in a batch; None where all are finite."""
        return self._samples.problem(inputs, targets, indices)
