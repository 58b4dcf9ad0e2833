"""Splitting a data set over devices, for trying: evenly, by a Dirichlet distribution, or by classes.

A Dirichlet split draws, for each class, what share of it each device has (Hsu, Qi and Brown, 2019): the
smaller its parameter, the fewer classes make up most of what a device has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spliteasy.errors import UserError

Places = NDArray[np.int64]

KINDS = "iid, dirichlet:0.3, or classes:2"
TRIES = 1000


@dataclass(frozen=True, slots=True)
class Partition:
    """A way to split a data set."""

    kind: Literal["iid", "dirichlet", "classes"]
    value: float = 0.0
    """The parameter of the Dirichlet distribution, or the number of classes that each device has."""


def parse_partition(text: str) -> Partition:
    """`iid`, `dirichlet:0.3` or `classes:2`. Raises UserError."""
    kind, _, number = text.partition(":")
    try:
        if text == "iid":
            return Partition("iid")
        if kind == "dirichlet" and 0 < float(number) < float("inf"):
            return Partition("dirichlet", float(number))
        if kind == "classes" and int(number) > 0:
            return Partition("classes", int(number))
    except ValueError:
        pass
    raise UserError(f"--partition {text[:40]!r} is no way to split data", hint=f"use {KINDS}")


def split_indices(
    labels: Sequence[int], devices: int, partition: Partition, *, seed: int, least: int = 1
) -> list[list[int]]:
    """Return the positions that each device gets: each position once, and at least `least` for each device.

    A pure function of all of these. Raises UserError where that can't be had.
    """
    found = np.asarray(labels, dtype=np.int64)
    if len(found) < devices * least:
        raise UserError(
            f"{len(found)} samples can't be split over {devices} devices with {least} each",
            hint="use fewer devices, or a smaller batch_size",
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(TRIES):
        match partition.kind:
            case "iid":
                parts = np.array_split(generator.permutation(len(found)), devices)
            case "dirichlet":
                parts = _dirichlet(found, devices, partition.value, generator)
            case "classes":
                parts = _by_classes(found, devices, int(partition.value), generator)
        if min(map(len, parts)) >= least:
            return [sorted(part.tolist()) for part in parts]
    raise UserError(
        f"no split in {TRIES} tries gave every device {least} samples",
        hint="use fewer devices, or a larger parameter of the Dirichlet distribution",
    )


def _dirichlet(labels: Places, devices: int, alpha: float, generator: np.random.Generator) -> list[Places]:
    parts: list[list[Places]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet([alpha] * devices)
        cuts = (np.cumsum(shares)[:-1] * len(places)).astype(np.int64)
        for part, piece in zip(parts, np.split(places, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _by_classes(labels: Places, devices: int, count: int, generator: np.random.Generator) -> list[Places]:
    """Give each device `count` classes in turn; devices that share a class share its samples evenly."""
    classes = generator.permutation(np.unique(labels))
    if count > len(classes) or devices * count < len(classes):
        raise UserError(
            f"{devices} devices with {count} classes each can't have all {len(classes)} classes of the data",
            hint=f"use classes:1 to classes:{len(classes)}, and enough devices for all classes",
        )
    of_class: dict[int, list[int]] = {int(label): [] for label in classes}
    for device in range(devices):
        for n in range(count):
            of_class[int(classes[(device * count + n) % len(classes)])].append(device)
    parts: list[list[Places]] = [[] for _ in range(devices)]
    for label, owners in of_class.items():
        places = generator.permutation(np.flatnonzero(labels == label))
        for device, piece in zip(owners, np.array_split(places, len(owners)), strict=True):
            parts[device].append(piece)
    return [np.concatenate(part) for part in parts]
