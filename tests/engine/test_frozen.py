"""Frozen tensors are held once, whatever the number of bodies, and are in no snapshot."""

from __future__ import annotations

import gc
from functools import cache
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor, nn

from broker import decode_tensor
from server_worker.actors import shared_bytes
from server_worker.engine import local
from server_worker.engine.base import LoadProgram, OpenBody, Restore, TakeSnapshot
from server_worker.engine.body_trainer import BodyTrainer
from server_worker.engine.frozen import FrozenTensors, other_base
from server_worker.engine.local import perform_now
from server_worker.replica.loaded_body import open_body
from spliteasy.errors import PortableError
from spliteasy.graph.document import Document, FreeDim, Graph, Node, TensorSpec, ValueSpec
from spliteasy.graph.encoding import document_to_json
from spliteasy.graph.operators import BATCH_NORM
from spliteasy.graph.segment import Frozen, Segment, load_segment, storage_of
from spliteasy.job import Job, JobSpec
from spliteasy.training.segment_trainer import SegmentTrainer

WIDTH = 16


class Block(nn.Module):
    """A base with batch norm, a constant, and an adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.adapter = nn.Linear(WIDTH, WIDTH, bias=False)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, given: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.base(given)) * self.scale) + self.adapter(given)


def build() -> nn.Module:
    torch.manual_seed(5)  # the same base, whatever the job's seed
    return nn.Sequential(nn.Linear(6, WIDTH), nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 3))


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)


@cache
def package(lr: float = 0.1, *frozen: str, rounds: bool = False) -> Job:
    groups = [{"pattern": pattern, "frozen": True} for pattern in frozen]
    return Job.create(
        JobSpec.model_validate(
            {
                "name": "frozen",
                "batch_size": 4,
                "epochs": 2,
                "model": {
                    "factory": "tests.engine.test_frozen:build",
                    "example": "tests.engine.test_frozen:example",
                    "cuts": ("0", "1"),
                },
                "loss": {"name": "cross_entropy"},
                "optimizer": {"name": "adam", "lr": lr, "groups": groups},
                **({"fleet": {"mode": "splitfed", "round_steps": 2}} if rounds else {}),
            }
        )
    )


BASE = ("1.*.base.*", "1.*.norm.*")


def loaded(job: Job) -> Job:
    return perform_now(LoadProgram(job.manifest, job.parts))


def opened(job: Job, device: str = "phone-1") -> BodyTrainer:
    body = perform_now(OpenBody(job, f"frozen.{device}", device))
    assert isinstance(body, BodyTrainer)
    return body


def storages(segment: Segment, part: str) -> dict[str, int]:
    return {name: storage_of(t) for name, t in segment.tensors().items() if part in name}


def step(trainer: SegmentTrainer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    graph = trainer.forward([torch.randn(4, WIDTH, generator=generator)])
    (output,) = graph.outputs
    assert isinstance(output, Tensor)
    trainer.backward(graph, [output.detach() * 0.5])
    trainer.apply()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_bodies_and_jobs_share_what_is_frozen_and_nothing_else() -> None:
    job, other = loaded(package(0.1, *BASE)), loaded(package(0.01, *BASE))
    assert job.digest != other.digest
    first, second, third = opened(job), opened(job, "phone-2"), opened(other)
    segments = [body.trainer.segment for body in (first, second, third)]
    for part in (".base.", ".scale", ".norm.weight", ".norm.bias"):
        found = [storages(segment, part) for segment in segments]
        assert found[0]
        assert found[0] == found[1] == found[2], part
    for part in (".adapter.", ".running_mean", ".running_var", ".num_batches_tracked"):
        found = [storages(segment, part) for segment in segments]
        assert len({address for each in found for address in each.values()}) == 3 * len(found[0]), part


def test_bodies_train_as_if_each_had_all_for_itself() -> None:
    job = package(0.1, *BASE)
    plain = [SegmentTrainer(job.body.spawn(), job.spec, device=d, role="body") for d in ("a", "b")]
    bodies = [opened(loaded(job), device).trainer for device in ("a", "b")]
    for number in range(6):
        place = number % 2
        step(plain[place], number)
        step(bodies[place], number)
    for one, other in zip(plain, bodies, strict=True):
        assert same(dict(one.segment.state_dict()), dict(other.segment.state_dict()))
        # The digest of a step is of these: who replays the log may hold all tensors for itself.
        assert all(map(torch.equal, one.moving(), other.moving()))
        assert len(one.moving()) == len(other.moving())


def test_no_frozen_tensor_is_in_a_snapshot_which_restores_all_the_same() -> None:
    job = loaded(package(0.1, *BASE))
    body = opened(job)
    for number in range(3):
        step(body.trainer, number)
    blobs = perform_now(TakeSnapshot(body))
    state = {name: decode_tensor(blob) for name, blob in blobs.items()}
    assert not [name for name in state if ".base." in name or ".scale" in name or ".norm.weight" in name]
    assert any("running_mean" in name for name in state)
    adapters = sum(t.nbytes for name, t in job.body.tensors().items() if ".adapter." in name)
    assert sum(t.nbytes for name, t in state.items() if ".adapter." in name) < 3 * adapters + 64
    again = opened(job)
    perform_now(Restore(again, blobs, 3))
    step(body.trainer, 9)
    step(again.trainer, 9)
    assert same(dict(body.trainer.segment.state_dict()), dict(again.trainer.segment.state_dict()))
    assert again.state_bytes < sum(t.nbytes for t in job.body.tensors().values()) + 4 * adapters


def test_a_snapshot_over_another_base_is_refused() -> None:
    job = loaded(package(0.1, *BASE))
    blobs = perform_now(TakeSnapshot(opened(job)))
    changed = job.body.spawn()
    with torch.no_grad():
        tensors = {name: t.detach().clone() for name, t in changed.tensors().items()}
        tensors["1.0.base.weight"][0, 0] += 1
    trainer = SegmentTrainer(Segment(changed.program, tensors), job.spec, device="phone-1", role="body")
    with pytest.raises(ValueError, match="other frozen tensors"):
        trainer.load_state({name: decode_tensor(blob) for name, blob in blobs.items()}, step=0)


def test_another_version_may_train_what_was_frozen_and_freeze_what_was_trained() -> None:
    narrow, wide = loaded(package(0.1, *BASE)), loaded(package(0.1, "1.*.adapter.*"))
    assert other_base(wide.body, narrow.body) is None
    body = opened(narrow)
    step(body.trainer, 1)
    on = opened(wide)
    perform_now(Restore(on, perform_now(TakeSnapshot(body)), 1))
    assert same(dict(body.trainer.segment.state_dict()), dict(on.trainer.segment.state_dict()))
    assert storages(on.trainer.segment, ".adapter.") != storages(opened(wide).trainer.segment, ".adapter.")
    step(on.trainer, 2)
    again = opened(wide)
    perform_now(Restore(again, perform_now(TakeSnapshot(on)), 2))
    assert same(dict(on.trainer.segment.state_dict()), dict(again.trainer.segment.state_dict()))
    untouched = opened(loaded(package(0.1, "1.*.adapter.*"))).trainer.segment
    assert same(dict(untouched.state_dict()), dict(package(0.1, *BASE).body.state_dict()))


def test_a_base_with_other_bits_is_said_before_a_version_goes_on() -> None:
    before, after = loaded(package(0.1, *BASE)), package(0.1)
    with torch.no_grad():
        tensors = {name: t.detach().clone() for name, t in after.body.tensors().items()}
        tensors["1.1.base.bias"][2] += 1
    changed = Segment(after.body.program, tensors)
    assert other_base(changed, before.body) == "1.1.base.bias was frozen, and has other values now"


def test_the_memory_goes_with_the_last_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FrozenTensors()
    monkeypatch.setattr(local, "_frozen", kept)
    known: WeakValueDictionary[str, Tensor] = kept._known
    job = loaded(package(0.1, *BASE))
    body = opened(job)
    assert known
    del job
    gc.collect()
    assert known
    del body
    gc.collect()
    assert not known


def test_where_a_job_has_rounds_buffers_are_each_bodys_own() -> None:
    job = loaded(package(0.1, *BASE, rounds=True))
    assert any(".base." in name for name in job.body.frozen)
    assert not [name for name in job.body.frozen if name.endswith("scale")]


def test_shared_tensors_count_once_in_the_memory_of_a_worker() -> None:
    job, other = loaded(package(0.1, *BASE)), loaded(package(0.01, *BASE))

    def body_of(which: Job, device: str) -> object:
        steps = open_body(which, f"frozen.{device}", device)
        request = next(steps)
        with pytest.raises(StopIteration) as ended:
            steps.send(perform_now(request))
        return ended.value.value

    bodies = [body_of(job, "phone-1"), body_of(job, "phone-2"), body_of(other, "phone-3")]
    frozen = sum({each.digest: each.tensor.nbytes for each in job.body.frozen.values()}.values())
    assert shared_bytes(bodies[:1]) == shared_bytes(bodies) == frozen  # type: ignore[arg-type]


def written_at_one_sample(op: str) -> Segment:
    """A program that a batch of two gives a copy of its constant to write into, and of one the constant."""
    rows = ValueSpec(name="x", dtype="float32", shape=(FreeDim(batch=1), 4))
    nodes = [
        Node(op="aten.expand_as.default", args=({"ref": 1}, {"ref": 2})),
        Node(op="aten.reshape.default", args=({"ref": 3}, [-1])),
    ]
    if op == BATCH_NORM:
        nodes.append(Node(op="aten.narrow.default", args=({"ref": 4}, 0, 0, 4)))
        mean, variance = {"ref": 5}, {"ref": 0}
        nodes.append(
            Node(op=BATCH_NORM, args=({"ref": 2}, None, None, mean, variance, True, 0.1, 1e-5, False))
        )
    else:
        nodes.append(Node(op=op, args=({"ref": 4}, 1.0)))
        nodes.append(Node(op="aten.mul.Scalar", args=({"ref": 2}, 1.0)))
    graph = Graph(
        inputs=(rows,),
        nodes=tuple(nodes),
        results=(6,),
        outputs=(rows.model_copy(update={"name": "y"}),),
        wire=1,
    )
    tensors = tuple(
        TensorSpec(names=(name,), kind="buffer", dtype="float32", shape=(1, 4) if name == "c" else (4,))
        for name in ("v", "c")
    )
    document = Document(name="body", tensors=tensors, train=graph, eval=graph)
    return load_segment(document_to_json(document), {"v": torch.ones(4), "c": torch.ones(1, 4)})


@pytest.mark.parametrize("op", ["aten.add_.Scalar", BATCH_NORM])
def test_a_program_that_writes_a_shared_tensor_at_one_batch_size_only_is_stopped_there(op: str) -> None:
    segment = written_at_one_sample(op)
    assert "c" not in segment.program.written
    body = segment.with_frozen({"c": Frozen(segment.tensors()["c"], "digest")})
    body(torch.randn(2, 4))
    with pytest.raises(PortableError, match="writes into a tensor that training does not change"):
        body(torch.randn(1, 4))
    assert torch.equal(body.tensors()["c"], torch.ones(1, 4))
