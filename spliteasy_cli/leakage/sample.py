"""The data of a recorded training: a part of the device's with canaries, and others to judge it against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from device_agent.training.data import DeviceData, load_dataset
from device_agent.training.samples import Samples, stacked
from spliteasy.errors import DataError
from spliteasy.job import Job
from spliteasy.privacy.record import Tensors, classes_of
from spliteasy.runtime.randomness import Key

DEVICE = "phone-1"

OTHER = Key(bytes(32))
"""The key that everybody else draws from: an adversary that has the law of the ends begins with ends of its
own."""

SAMPLE = 512
"""Training samples that are used at most."""

CANARIES = 0.1
"""Share of the training samples whose label is drawn at random."""

HELD_OUT = 0.25
"""Share of the training data that stands for public data and strangers where there is no test data."""

PREDICTED = 128
"""Samples that are predicted at most."""


@dataclass(frozen=True, slots=True, repr=False)
class Sample:
    """The data that a recording trains on, and that it is judged against."""

    train: _Part
    test: Dataset[Any] | None
    canaries: frozenset[int]
    public: tuple[Tensors, Tensors] | None
    """Samples of the same kind that nobody trains on, for attacks that need some."""
    strangers: tuple[Tensors, Tensors] | None
    """Others, to tell members from."""


class _Part(Dataset[Any]):
    """Some items of a data set, a few with labels of our own."""

    def __init__(self, whole: Dataset[Any], indices: Sequence[int], labels: dict[int, int]) -> None:
        self._whole, self._indices, self._labels = whole, indices, labels

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        item = self._whole[self._indices[index]]
        if index not in self._labels:
            return item
        inputs, target = item
        label = self._labels[index]
        given = target[0] if isinstance(target, (tuple, list)) else target
        changed = torch.full_like(given, label) if isinstance(given, Tensor) else label
        return inputs, changed


def draw_sample(job: Job, data: str | DeviceData, root: Path | None, *, seed: int = 0) -> Sample:
    """A part of the device's data with canaries, and others that it is not trained on. Raises DataError."""
    loaded = _of_one_length(job, load_dataset(data, DEVICE, job.signature, root=root, recipe=job.spec.data))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(loaded.train), generator=generator).tolist()  # type: ignore[arg-type]
    rest: Dataset[Any]
    if loaded.test is not None:
        rest, others = loaded.test, torch.randperm(len(loaded.test), generator=generator).tolist()  # type: ignore[arg-type]
    else:
        count = int(HELD_OUT * len(order))
        rest, others, order = loaded.train, order[:count], order[count:]
    chosen = order[:SAMPLE]
    if len(chosen) < 2:
        raise DataError("there is too little data to record a training on", hint="name more with --data")
    labels: dict[int, int] = {}
    classes = classes_of(job)
    if classes is not None:
        places = torch.randperm(len(chosen), generator=generator).tolist()
        for place in places[: round(CANARIES * len(chosen))]:
            labels[place] = int(torch.randint(classes, (), generator=generator))
    half = len(others) // 2
    public, strangers = others[:half][:SAMPLE], others[half:][:SAMPLE]
    gathered = Samples(rest, job.spec, job.signature, device=DEVICE, key=OTHER, name="held-out")
    return Sample(
        train=_Part(loaded.train, chosen, labels),
        test=loaded.test,
        canaries=frozenset(labels),
        public=gathered.gather(public, "public") if public else None,
        strangers=gathered.gather(strangers, "strangers") if strangers else None,
    )


def _of_one_length(job: Job, data: DeviceData) -> DeviceData:
    """The data with all samples padded to the job's longest, where they have lengths: attacks compare
    samples with each other. What their lengths tell is not measured."""
    if job.spec.model.max_length is None:
        return data
    return DeviceData(_Longest(job, data.train), None if data.test is None else _Longest(job, data.test))


class _Longest(Dataset[Any]):
    """A data set whose samples are padded to the longest that the job takes."""

    def __init__(self, job: Job, whole: Dataset[Any]) -> None:
        self._job, self._count = job, len(whole)  # type: ignore[arg-type]
        self._samples = Samples(whole, job.spec, job.signature, device=DEVICE, key=OTHER, name="recorded")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        (row,) = self._samples.rows([index], "recorded")
        signature, model = self._job.signature, self._job.spec.model
        specs = (*signature.inputs, *signature.targets)
        padded = tuple(
            stacked([tensor], spec, model.max_length or 0, model.pad.get(spec.name))[0]
            for tensor, spec in zip(row, specs, strict=True)
        )
        return padded[: len(signature.inputs)], padded[len(signature.inputs) :]


def gather(job: Job, data: Dataset[Any], count: int, name: str) -> tuple[Tensors, Tensors]:
    """The first samples of `data`: (inputs, targets)."""
    made = Samples(data, job.spec, job.signature, device=DEVICE, key=OTHER, name=name)
    return made.gather(range(count), name)


def to_predict(job: Job, sample: Sample) -> tuple[Tensors, Tensors]:
    """Samples that the trained device predicts in one request: test data where there is any."""
    data: Dataset[Any] = sample.train if sample.test is None else sample.test
    there = len(data)  # type: ignore[arg-type]
    return gather(job, data, min(PREDICTED, job.spec.evaluation.batch_size, there), "prediction")
