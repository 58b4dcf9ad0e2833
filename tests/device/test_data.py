"""The device's data: order and randomness are functions of the step, and misfits are told by sample."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from device_agent.training.data import BatchOrder, EvaluationBatches, load_dataset
from spliteasy.errors import DataError
from spliteasy.graph.document import DtypeName
from spliteasy.job import JobSpec, parse_job
from spliteasy.job.io_schema import SampleSpec, Signature
from tests.drawn import SECRET, key_of


def spec_with(**keys: Any) -> JobSpec:
    return parse_job(
        {
            "name": "job",
            "seed": 5,
            "batch_size": 4,
            "epochs": 3,
            "model": {"factory": "m:build", "example": "m:example", "cuts": ["stem", "pool"]},
            "loss": {"name": "cross_entropy"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            **keys,
        }
    )


def signature(inputs: tuple[tuple[DtypeName, tuple[int, ...]], ...] = (("float32", (2,)),)) -> Signature:
    return Signature(
        inputs=tuple(SampleSpec(name=f"x{i}", dtype=d, shape=s) for i, (d, s) in enumerate(inputs)),
        targets=(SampleSpec(name="label", dtype="int64", shape=()),),
        outputs=(SampleSpec(name="logits", dtype="float32", shape=(3,)),),
    )


class Items(Dataset[Any]):
    """A data set of `make(index)`."""

    def __init__(self, length: int, make: Callable[[int], Any]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def plain(length: int) -> Items:
    return Items(length, lambda i: (torch.tensor([float(i), -float(i)]), i % 3))


def noisy(index: int) -> Any:
    x = torch.tensor([torch.rand(()).item() + np.random.rand(), random.random()])
    return x + index, index % 3


def batches(dataset: Any, device: str = "phone-1", **keys: Any) -> BatchOrder:
    return BatchOrder(
        dataset, spec_with(**keys), signature(), device=device, key=key_of(device), labels=key_of()
    )


def order_of(loader: BatchOrder) -> list[int]:
    """The samples of the first epoch, by their number."""
    steps = range(1, loader.steps_per_epoch + 1)
    return torch.cat([loader.batch(step)[0][0][:, 0] for step in steps]).int().tolist()


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own() -> None:
    loader = batches(plain(10))
    assert (loader.steps_per_epoch, loader.total_steps, len(loader)) == (3, 9, 10)
    orders = []
    for epoch in range(3):
        steps = [loader.batch(epoch * 3 + k) for k in (1, 2, 3)]
        assert [inputs[0].shape[0] for inputs, _ in steps] == [4, 4, 2]
        order = torch.cat([inputs[0][:, 0] for inputs, _ in steps]).int().tolist()
        labels = torch.cat([targets[0] for _, targets in steps]).tolist()
        assert sorted(order) == list(range(10))
        assert labels == [index % 3 for index in order]
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_drop_last_leaves_whole_batches_only() -> None:
    loader = batches(plain(10), drop_last=True)
    assert (loader.steps_per_epoch, loader.total_steps) == (2, 6)
    assert all(loader.batch(step)[0][0].shape[0] == 4 for step in range(1, 7))
    assert loader.epoch(2) == 0
    assert loader.epoch(3) == 1


@pytest.mark.parametrize("step", [0, 10])
def test_steps_outside_the_plan_are_a_mistake_of_the_caller(step: int) -> None:
    with pytest.raises(ValueError, match="is not in 1 to 9"):
        batches(plain(10)).batch(step)


def test_a_batch_is_a_pure_function_of_secret_device_and_step() -> None:
    dataset = Items(10, noisy)
    forward = batches(dataset)
    first = {step: forward.batch(step)[0][0] for step in range(1, 10)}
    random.seed(99)
    again = batches(dataset)
    backward = {step: again.batch(step)[0][0] for step in range(9, 0, -1)}
    assert all(torch.equal(first[step], backward[step]) for step in first)
    assert not torch.equal(first[1], batches(dataset, device="phone-2").batch(1)[0][0])
    for at in (0, 15, 31):  # any byte of the secret counts
        other = bytes(byte ^ (place == at) for place, byte in enumerate(SECRET))
        key = key_of(secret=other)
        changed = BatchOrder(dataset, spec_with(), signature(), device="phone-1", key=key, labels=key)
        assert not torch.equal(first[1], changed.batch(1)[0][0])
        assert order_of(changed) != order_of(forward)


def test_the_same_sample_is_augmented_anew_in_every_epoch() -> None:
    loader = batches(Items(1, noisy))
    values = {loader.batch(step)[0][0][0, 0].item() for step in (1, 2, 3)}
    assert len(values) == 3


def test_random_states_of_the_process_are_put_back() -> None:
    loader = batches(Items(10, noisy))

    def drawn(between: Callable[[], object]) -> tuple[float, float, float]:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        between()
        return torch.rand(()).item(), np.random.rand(), random.random()

    assert drawn(lambda: loader.batch(1)) == drawn(lambda: None)


def test_evaluation_goes_through_the_data_in_another_order_each_time() -> None:
    spec = spec_with(evaluation={"batch_size": 4})
    loader = EvaluationBatches(plain(10), spec, signature(), device="phone-1", key=key_of())
    assert (len(loader), loader.samples) == (3, 10)

    def order(step: int) -> list[int]:
        return torch.cat([loader.batch(i, step)[0][0][:, 0] for i in range(3)]).int().tolist()

    assert sorted(order(3)) == list(range(10))
    assert order(3) == order(3) != order(6)


def test_several_inputs_arrays_and_numbers_are_taken() -> None:
    two = signature((("float32", (2,)), ("int32", ())))
    items = Items(4, lambda i: ((np.ones(2, dtype=np.float32)[::-1], np.int32(i)), (np.int64(1),)))
    inputs, targets = BatchOrder(items, spec_with(), two, device="d", key=key_of(), labels=key_of()).batch(1)
    assert (inputs[0].dtype, inputs[1].dtype, targets[0].dtype) == (torch.float32, torch.int32, torch.int64)
    assert sorted(inputs[1].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ((torch.zeros(3), 0), "sample 7: input 'x0' is float32[3], expected float32[2]"),
        ((torch.zeros(2).double(), 0), "is float64[2], expected float32[2] (convert it with .float()"),
        ((torch.zeros(2, dtype=torch.uint8), 0), "is uint8[2], expected float32[2] (scale it"),
        ((np.zeros(2), 0), "is float64[2], expected float32[2]"),
        (([0.0, 1.0], 0), "sample 7 has 2 inputs, the job has 1"),
        ((torch.zeros(2), torch.tensor(1, dtype=torch.int32)), "target 'label' is int32[], expected int64[]"),
        ((torch.zeros(2), 1.0), "target 'label' is a float, expected int64[]"),
        ((torch.zeros(2), True), "target 'label' is a bool, expected int64[]"),
        ((torch.zeros(2), "cat"), "target 'label' is a str, expected int64[]"),
        ((torch.zeros(2), np.array("cat")), "target 'label' can't be a tensor"),
        ((torch.zeros(2), 2**70), "target 'label' can't be a tensor"),
        ((torch.zeros(2), 3), "label 3 is out of range (the model has 3 classes: labels are 0 to 2)"),
        ((torch.zeros(2), -1), "sample 7: label -1 is out of range"),
        (torch.zeros(2), "sample 7 is a Tensor, not (inputs, targets)"),
        ((torch.zeros(2, device="meta"), 0), "is on meta, expected it on the CPU"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(bad: Any, told: str) -> None:
    loader = batches(Items(8, lambda i: bad if i == 7 else (torch.zeros(2), -100)))
    with pytest.raises(DataError) as caught:
        [loader.batch(step) for step in (1, 2)]
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_raises_is_named_with_the_sample() -> None:
    with pytest.raises(DataError, match=r"sample 0: the data set raised ZeroDivisionError: .*test_data.py"):
        batches(Items(3, lambda i: 1 / i))


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataError, match="the training data of phone-1 has no samples"):
        batches(plain(0))
    with pytest.raises(DataError, match="has 3 samples, and drop_last leaves none: batch_size is 4"):
        batches(plain(3), drop_last=True)
    assert batches(plain(3)).steps_per_epoch == 1


def test_the_fingerprint_tells_data_sets_apart() -> None:
    def changed(index: int) -> Any:
        x, label = plain(10)[index]
        return (x + 1e-6 if index == 6 else x), label

    same = [batches(plain(10)).fingerprint, batches(plain(10), device="phone-1", batch_size=2).fingerprint]
    assert same[0] == same[1]
    others = {batches(plain(11)).fingerprint, batches(Items(10, changed)).fingerprint}
    assert len({*same, *others}) == 3
    assert batches(Items(10, noisy)).fingerprint == batches(Items(10, noisy)).fingerprint
    assert batches(plain(1)).fingerprint != batches(plain(2)).fingerprint


def test_the_fingerprint_of_large_data_reads_a_part() -> None:
    read: list[int] = []

    def make(index: int) -> Any:
        read.append(index)
        return plain(1)[0]

    loader = batches(Items(1_000_000, make))
    _ = loader.fingerprint
    assert len(read) < 600
    assert {0, 999_999} <= set(read)
    assert max(b - a for a, b in zip(sorted(read), sorted(read)[1:], strict=False)) < 2500


# Where the data comes from ------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "user_data.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def dataset(n=4):\n    return TensorDataset(torch.full((4, 2), 1.0), torch.zeros(4).long())\n"
        "def by_device(device, *, scale=1):\n"
        "    return [(torch.full((2,), float(device[-1])), 0)], dataset()\n"
        "def nothing():\n    return None\n"
        "def numbers():\n    return 3, 4\n"
        "def fails(device):\n    raise OSError('no disk')\n"
        "from torch.utils.data import IterableDataset as I\n"
        "class Endless(I):\n    def __iter__(self):\n        return iter(())\n"
        "def endless():\n    return Endless()\n"
        "def no_arguments():\n    return dataset()\n"
        "def four():\n    return (dataset(),) * 4\n"
        "def loader():\n    return torch.utils.data.DataLoader(dataset())\n"
        "def wrong_keys():\n    return {'train': dataset(), 'testing': dataset()}\n"
        "def two_needed(folder, seed):\n    return dataset()\n"
        "def defaults(n=3, seed=1):\n    return dataset(n), dataset(n)\n"
        "def listed(device):\n    return [dataset(), dataset()]\n"
        "def three(device):\n    return dataset(), None, dataset()\n"
        "def named():\n    return {'Train': dataset(), 'val': dataset(), 'test': dataset()}\n"
        "def comes_second(n=4, device=''):\n    assert device == 'phone-7'\n    return dataset(), dataset()\n"
        "def by_keyword(*, device):\n    assert device == 'phone-7'\n    return dataset(), dataset()\n"
        "def any_number(*them):\n    assert them == ('phone-7',)\n    return dataset(), dataset()\n"
    )
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("user_data", None)


def test_a_function_gives_one_data_set_or_train_and_test(project: Path) -> None:
    data = load_dataset("user_data:no_arguments", "phone-7", signature(), root=project)
    assert isinstance(data.train, TensorDataset)
    assert data.test is None
    data = load_dataset("user_data:by_device", "phone-7", signature(), root=project)
    assert batches(data.train).batch(1)[0][0].tolist() == [[7.0, 7.0]]
    assert isinstance(data.test, TensorDataset)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("user_data:nothing", "returned a NoneType, not a data set"),
        ("user_data:numbers", "returned a int, not a data set, as training data"),
        ("user_data:four", "returned 4 things"),
        ("user_data:loader", "returned a DataLoader as training data (return the data set that it reads"),
        (
            "user_data:wrong_keys",
            "returned a dictionary with 'train', 'testing', not with 'train' and 'test'",
        ),
        ("user_data:two_needed", "needs values for folder, seed; a data function gets the device's id alone"),
        ("user_data:endless", "returned a Endless, not a data set"),
        ("user_data:fails", "raised OSError: no disk (user_data.py"),
        ("user_data:datset", "did you mean dataset?"),
        ("no/such/folder", "is neither a folder nor module:function"),
    ],
)
def test_a_reference_that_gives_no_data_set(project: Path, reference: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(reference, "phone-7", signature(), root=project)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("defaults", False),
        ("listed", False),
        ("three", False),
        ("named", True),
        ("comes_second", False),
        ("by_keyword", False),
        ("any_number", False),
    ],
)
def test_a_function_may_be_called_and_may_answer_in_many_ways(project: Path, name: str, noted: bool) -> None:
    data = load_dataset(f"user_data:{name}", "phone-7", signature(), root=project)
    assert isinstance(data.train, TensorDataset)
    assert isinstance(data.test, TensorDataset)
    assert any("validation data is not used" in note for note in data.notes) is noted


def test_items_may_be_dictionaries_by_the_jobs_names() -> None:
    loader = batches(Items(4, lambda i: {"label": i % 3, "x0": torch.full((2,), float(i)), "id": i}))
    inputs, targets = loader.batch(1)
    assert inputs[0].shape == (4, 2)
    assert sorted(targets[0].tolist()) == [0, 0, 1, 2]
    with pytest.raises(DataError, match=r"a dictionary with 'image', 'label', and lacks 'x0'.*model\.inputs"):
        batches(Items(4, lambda i: {"image": torch.zeros(2), "label": 0}))
