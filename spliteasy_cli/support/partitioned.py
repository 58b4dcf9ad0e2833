"""`--partition`: one data set split over the devices of `train` and `parity`.

The data set is what the data function gives for any device or, where it is called with a device's name, what
it gives for all of them together. Every device is tested with the first one's test data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from device_agent.config import AgentConfig
from device_agent.training.data import BatchOrder, DeviceData, load_dataset
from device_agent.training.data_function import takes_device
from spliteasy.errors import DataError
from spliteasy.fleet.partition import Partition, split_indices
from spliteasy.job import Job
from spliteasy.runtime import user_code
from spliteasy.runtime.randomness import KEY_BYTES, Key


def partitioned(
    configs: Sequence[AgentConfig], job: Job, root: Path, partition: Partition
) -> list[AgentConfig]:
    """Return the same devices with parts of all their data. Runs the user's data code. Raises UserError."""
    loaded = [
        load_dataset(config.data, config.device, job.signature, root=root, recipe=job.spec.data)
        for config in (configs if _is_by_device(configs[0].data, root) else configs[:1])
    ]
    apart = {_fingerprint(each.train, job): each.train for each in loaded}
    whole: Dataset[Any] = ConcatDataset(list(apart.values()))
    labels = [] if partition.kind == "iid" else _labels_of(whole)
    count = len(whole)  # type: ignore[arg-type]
    least = job.spec.batch_size if job.spec.drop_last else job.signature.least_samples
    parts = split_indices(labels or [0] * count, len(configs), partition, seed=job.spec.seed, least=least)
    return [
        replace(config, data=DeviceData(Subset(whole, part), loaded[0].test))
        for config, part in zip(configs, parts, strict=True)
    ]


def _is_by_device(reference: str | DeviceData, root: Path) -> bool:
    """Return whether each device has data of its own: a function that is called with the device's name."""
    if isinstance(reference, DeviceData) or ":" not in reference:
        return False
    return takes_device(user_code.resolve(reference, root=root, what="--data", error=DataError), reference)


def _fingerprint(dataset: Dataset[Any], job: Job) -> str:
    """Equal for equal data sets: a function may know a few devices only, and give others the same again."""
    none = Key(bytes(KEY_BYTES))
    order = BatchOrder(dataset, job.spec, job.signature, device="all", key=none, labels=none)
    return order.fingerprint


def _labels_of(whole: Dataset[Any]) -> list[int]:
    """Return the class of each sample: the item's only target, a whole number. Raises DataError."""
    labels = []
    for index in range(len(whole)):  # type: ignore[arg-type]
        item = whole[index]
        target = item[1] if isinstance(item, tuple) and len(item) == 2 else None
        number = torch.as_tensor(target) if isinstance(target, torch.Tensor | int) else None
        if number is None or number.numel() != 1 or number.is_floating_point():
            raise DataError(
                "--partition by classes needs samples of (inputs, class number)",
                hint="use --partition iid, or data whose target is one class number",
            )
        labels.append(int(number))
    return labels
