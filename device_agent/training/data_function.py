"""A user's data function: how it is called, and what it may return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from spliteasy.errors import DataError
from spliteasy.runtime import user_code as importing

TRAIN, TEST = "train", "test"
VALIDATION = ("validation", "valid", "val", "dev")
_SHAPES = 'a data set, (train, test), (train, validation, test), or a dictionary with "train" and "test"'
_UNUSED = (
    "the validation data is not used: nothing is chosen by it, and the accuracy is that of the test data"
)

DataSets = tuple[Dataset[Any], Dataset[Any] | None, tuple[str, ...]]
"""Training data, test data, and what a person should know about it."""


def data_sets_of(function: Callable[..., Any], device: str, reference: str) -> DataSets:
    """Call the function and sort what it returns. Raises DataError."""
    arguments, named = _arguments(function, device, reference)

    def call() -> Any:
        return function(*arguments, **named)

    found = importing.call(call, reference=reference, what="--data", error=DataError)
    train, validation, test = _sorted(found, reference)
    for name, dataset in (("training", train), ("validation", validation), ("test", test)):
        if dataset is not None or name == "training":
            _check(dataset, name, reference)
    return train, test, () if validation is None else (_UNUSED,)


def takes_device(function: Callable[..., Any], reference: str) -> bool:
    """Return whether the function is called with the device's id, so that each device may have data of its
    own.
    """
    arguments, named = _arguments(function, "", reference)
    return bool(arguments or named)


def _arguments(
    function: Callable[..., Any], device: str, reference: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The device's id for a parameter that is called device or that needs a value; others keep defaults."""
    parameters = list(inspect.signature(function).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    needed = [p for p in (*plain, *by_name) if p.default is p.empty]
    if len(needed) > 1:
        names = ", ".join(p.name for p in needed)
        raise DataError(
            f"--data = {reference!r} needs values for {names}; a data function gets the device's id alone",
            hint="give all parameters but one a default",
        )
    wanted = needed or [p for p in (*plain, *by_name) if p.name in ("device", "device_id")]
    if not wanted:
        takes_any = not plain and any(p.kind is p.VAR_POSITIONAL for p in parameters)
        return (device,) if takes_any else (), {}
    if wanted[0].kind is inspect.Parameter.POSITIONAL_ONLY:
        before = plain[: plain.index(wanted[0])]
        return (*(p.default for p in before), device), {}
    return (), {wanted[0].name: device}


def _sorted(found: Any, reference: str) -> tuple[Any, Any, Any]:
    """(train, validation, test) of what a data function returned; None where there is none."""
    if isinstance(found, Mapping) and not isinstance(found, Dataset):
        keys = {str(key).lower(): key for key in found}
        validation = next((keys[name] for name in VALIDATION if name in keys), None)
        unknown = sorted(set(keys) - {TRAIN, TEST, *VALIDATION})
        if TRAIN not in keys or unknown:
            have = ", ".join(map(repr, keys)) or "no keys"
            raise DataError(
                f"--data = {reference!r} returned a dictionary with {have}, not with 'train' and 'test'",
                hint=f"return {_SHAPES}",
            )
        return (
            found[keys[TRAIN]],
            None if validation is None else found[validation],
            found[keys[TEST]] if TEST in keys else None,
        )
    if isinstance(found, tuple) or (isinstance(found, list) and _all_data_sets(found)):
        if len(found) == 2:
            return found[0], None, found[1]
        if len(found) == 3:
            return found[0], found[1], found[2]
        raise DataError(f"--data = {reference!r} returned {len(found)} things", hint=f"return {_SHAPES}")
    return found, None, None


def _all_data_sets(found: list[Any]) -> bool:
    """Return whether a list holds data sets, rather than being one."""
    return 2 <= len(found) <= 3 and all(isinstance(each, Dataset | DataLoader) for each in found)


def _check(dataset: Any, name: str, reference: str) -> None:
    if isinstance(dataset, DataLoader):
        raise DataError(
            f"--data = {reference!r} returned a DataLoader as {name} data",
            hint="return the data set that it reads (loader.dataset): the job gives batch size and order",
        )
    if isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise DataError(
            f"--data = {reference!r} returned a {type(dataset).__name__}, not a data set, as {name} data",
            hint=f"return {_SHAPES}; a data set has __len__ and __getitem__",
        )
