"""A simulated world is quick because pure functions of job and data are computed once a process.

Nothing of the protocol is left out, and nothing that a fault could change: every restart of every seed
would load the same jobs and make the same batches again, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils.data import Dataset

from device_agent import setup
from device_agent.training import ends
from device_agent.training.data import DeviceData
from device_agent.training.samples import Samples, Tensors
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.job.io_schema import Signature
from spliteasy.privacy.ends import Drawn
from spliteasy.runtime.randomness import Key
from spliteasy.training.digest import digest_of
from tests.simulation import toy

SHARDS = 4
"""Each is a subscription that every worker makes at every start. The devices of a run are in two of them."""


@contextmanager
def quick() -> Iterator[None]:
    """Few shards, remembered jobs and batches, and no fsync: the kernel does not crash here."""
    with ExitStack() as patches:
        for owner, name, replacement in (
            (os, "fsync", lambda _: None),
            (Job, "from_parts", _from_parts),
            (setup, "load_dataset", _load_dataset),
            (Samples, "gather", _gather),
            (ends, "draw_ends", _draw_ends),
            (setup, "refuse_disguised", _refuse_disguised),
        ):
            patches.enter_context(mock.patch.object(owner, name, replacement))
        yield


_load_job: Callable[..., Job] = Job.from_parts
_make_batch = Samples.gather
_JOBS: dict[tuple[bytes, tuple[str, ...]], Job] = {}
_make_ends = ends.draw_ends
_ENDS: dict[tuple[str, bytes], Drawn] = {}
_find_disguises = setup.refuse_disguised
_NOT_DISGUISED: set[tuple[str, str, str]] = set()
_BATCHES: dict[tuple[Any, ...], tuple[Tensors, Tensors]] = {}


def _from_parts(manifest: bytes, parts: Mapping[str, bytes], **_: Any) -> Job:
    key = manifest, tuple(sorted(parts))
    if key not in _JOBS:
        _JOBS[key] = _load_job(manifest, parts)
    return _JOBS[key]


@cache
def _data_of(reference: str, device: str) -> DeviceData:
    train, test = getattr(toy, reference.rpartition(":")[2])(device)
    return DeviceData(train, test)


def _load_dataset(reference: str, device: str, signature: Signature, **_: Any) -> DeviceData:
    assert reference in {variant.data for variant in (*toy.VARIANTS, *toy.WITH_LENGTHS)}
    return _data_of(reference, device)


def _gather(self: Samples, indices: Sequence[int], *place: str | int) -> tuple[Tensors, Tensors]:
    data: Dataset[Any] = self._dataset  # kept by `_data_of`, so that its id is nobody else's
    key = id(data), self._key.stream(16), tuple(indices), place
    if key not in _BATCHES:
        _BATCHES[key] = _make_batch(self, indices, *place)
    return _BATCHES[key]


def _draw_ends(job: Job, key: Key) -> Drawn:
    known = job.digest, key.stream(16)
    if known not in _ENDS:
        _ENDS[known] = _make_ends(job, key)
    return _ENDS[known]


def _refuse_disguised(job: Job, head: Segment, inputs: Sequence[Tensor]) -> None:
    """Measure a head on its inputs once: what raises is not remembered, and so raises again."""
    measured = job.digest, digest_of(head.state_dict().values()), digest_of(inputs)
    if measured not in _NOT_DISGUISED:
        _find_disguises(job, head, inputs)
        _NOT_DISGUISED.add(measured)
