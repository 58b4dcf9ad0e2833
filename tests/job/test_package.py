"""Job packages: made from the user's model once, the same everywhere, and refused when tampered with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from device_agent.training.ends import draw_ends
from spliteasy.errors import CutError, JobError, NeedsNewer, PortableError
from spliteasy.job import Job, device_parts, parse_job
from spliteasy.job.package import job_digest, manifest_of
from spliteasy.job.source import build_model
from spliteasy.training.reference import begin_with
from tests.drawn import drawn, key_of
from tests.job.test_spec import small

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.job.test_package"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.middle(self.stem(x)))
        return result


class Masked(Net):
    """Two inputs and two outputs; the mask is used by the server."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        hidden = self.middle(self.stem(x) * mask)
        return self.last(hidden), hidden.sum(1)


class Fickle(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, y + 1) if self.training else y


def build() -> nn.Module:
    return Net()


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)


def example_of_one() -> tuple[Tensor, Tensor]:
    return torch.randn(1, 6), torch.zeros(1, dtype=torch.int64)


def float_example() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.zeros(4, 3)


def masked_example() -> Any:
    return (torch.randn(4, 6), torch.ones(4, 8)), (torch.zeros(4, dtype=torch.int64), torch.zeros(4))


def uneven_example() -> Any:
    return torch.randn(4, 6), torch.zeros(5, dtype=torch.int64)


def build_double() -> nn.Module:
    return Net().double()


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 2.0, 3.0])
    return F.cross_entropy(outputs, targets, weight=weights, label_smoothing=0.1)


def two_headed(outputs: Any, targets: Any) -> Tensor:
    return F.cross_entropy(outputs[0], targets[0]) + F.mse_loss(outputs[1], targets[1])


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def spec_of(**changes: Any) -> Any:
    data = {**small(), "seed": 3}
    data["model"] = {"factory": f"{HERE}:build", "example": f"{HERE}:example", "cuts": ["stem", "middle"]}
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = data
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return parse_job(data)


def named(function: Any) -> str:
    return f"{HERE}:{function.__name__}"


@pytest.fixture(scope="module")
def job() -> Job:
    return Job.create(spec_of(), ROOT)


def test_weights_are_those_of_the_seed_and_nothing_else_is_moved(job: Job) -> None:
    torch.manual_seed(3)
    expected = Net().state_dict()
    state = {k: v for s in (job.head, job.body, job.tail) if s is not None for k, v in s.state_dict().items()}
    assert state.keys() == expected.keys()
    values = {name for name, tensor in state.items() if not tensor.is_meta}
    assert all(torch.equal(state[name], expected[name]) for name in values)
    assert values >= set(job.body.state_dict())
    assert expected.keys() - values == {*job.ends.of("head"), *job.ends.of("tail")} != set()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert Job.create(spec_of(), ROOT).digest == job.digest
    assert torch.equal(torch.get_rng_state(), before)
    assert Job.create(spec_of(seed=4), ROOT).digest != job.digest


def test_another_process_makes_the_same_digest(job: Job) -> None:
    program = (
        f"from pathlib import Path\nfrom spliteasy.job import Job\nfrom {HERE} import spec_of, ROOT\n"
        "print(Job.create(spec_of(), ROOT).digest)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.split() == [job.digest], run.stderr


def test_the_segments_chain_to_the_model(job: Job) -> None:
    model, (x,), (labels,) = build_model(spec_of(), ROOT)
    model.eval()
    assert job.tail is not None
    key = key_of()
    begin_with(model, draw_ends(job, key))
    job = drawn(job, key)
    assert job.tail is not None
    for segment in (job.head, job.body, job.tail):
        segment.eval()
    with torch.no_grad():
        outputs = job.tail(*job.body(*job.head(x)))
        assert torch.equal(outputs[0], model(x))
        assert torch.equal(job.loss(outputs, (labels,)), F.cross_entropy(model(x), labels))
    assert [str(spec) for spec in job.signature.inputs] == ["float32[6]"]
    assert [str(spec) for spec in job.signature.targets] == ["int64[]"]
    assert [str(spec) for spec in job.signature.outputs] == ["float32[3]"]


def test_a_device_gets_all_but_the_body(job: Job) -> None:
    assert set(job.parts) - set(job.device_parts()) == {"body.json", "body.safetensors"}
    assert tuple(job.device_parts()) == device_parts(job.parts)
    device = Job.from_parts(job.manifest, job.device_parts(), digest=job.digest)
    assert (device.name, device.digest) == (job.name, job.digest) == ("job", job_digest(job.manifest))
    with pytest.raises(JobError, match=r"this copy of job job@[0-9a-f]{12} has no body"):
        _ = device.body
    assert Job.from_parts(device.manifest, device.parts).tail is not None


def test_a_saved_job_is_the_same_job(job: Job, tmp_path: Path) -> None:
    job.save(tmp_path / "new" / "job")
    loaded = Job.load(tmp_path / "new" / "job", digest=job.digest)
    assert dict(loaded.parts) == dict(job.parts)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["job"]
    with pytest.raises(JobError, match="exists already"):
        job.save(tmp_path / "new" / "job")
    with pytest.raises(JobError, match="is no job package: No such file"):
        Job.load(tmp_path / "nowhere")
    (tmp_path / "new" / "job" / "tail.json").unlink()
    with pytest.raises(PortableError, match=r"has no part tail.json"):
        Job.load(tmp_path / "new" / "job")


def test_loading_never_imports_the_users_module(job: Job, tmp_path: Path) -> None:
    job.save(tmp_path / "job")
    program = (
        "import sys\nfrom pathlib import Path\nfrom spliteasy.job import Job\n"
        f"job = Job.load(Path({str(tmp_path / 'job')!r}))\nprint(job.digest, {HERE!r} in sys.modules,"
        " 'spliteasy.splitting' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.split() == [job.digest, "False", "False"], run.stderr


@pytest.mark.parametrize("name", ["spec.json", "head.json", "head.safetensors", "tail.safetensors"])
def test_a_damaged_part_is_refused(job: Job, name: str) -> None:
    data = bytearray(job.parts[name])
    data[len(data) // 2] ^= 1
    for broken in (bytes(data), job.parts[name][:-1], b""):
        with pytest.raises(PortableError, match=f"part {name} of job job is damaged"):
            Job.from_parts(job.manifest, {**job.parts, name: broken})


def test_parts_must_be_the_listed_ones(job: Job) -> None:
    with pytest.raises(PortableError, match=r"has an unlisted part 'loss\.json'"):
        Job.from_parts(job.manifest, {**job.parts, "loss.json": b"{}"})
    with pytest.raises(PortableError, match=r"the package of job job has no part head\.json"):
        Job.from_parts(job.manifest, {n: d for n, d in job.parts.items() if n != "head.json"})
    with pytest.raises(PortableError, match="has half a body"):
        Job.from_parts(job.manifest, {n: d for n, d in job.parts.items() if n != "body.json"})
    with pytest.raises(PortableError, match="the job manifest has digest"):
        Job.from_parts(job.manifest, job.parts, digest="0" * 64)


def without(parts: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in parts.items() if name not in names}


def test_a_package_that_is_consistent_but_wrong_is_refused(job: Job) -> None:
    parts = dict(job.parts)
    spec = orjson.loads(parts["spec.json"])

    def respec(**changes: Any) -> dict[str, bytes]:
        return {**parts, "spec.json": orjson.dumps({**spec, **changes})}

    traced = {"loss": {"name": None, "function": "os:system"}}
    cases = [
        ("other", parts, "the manifest is of job other, its spec of job job"),
        ("job", without(parts, "spec.json"), "the package has no spec.json"),
        ("job", without(parts, "tail.json", "tail.safetensors"), "lacks a segment"),
        ("job", without(parts, "head.json", "head.safetensors"), "lacks a segment"),
        ("job", respec(batch_size=0), "spec.json: batch_size: "),
        ("job", respec(**traced), "the package's loss is not what its spec says"),
        ("job", {**parts, "spec.json": b"\xff["}, "spec.json: "),
        ("job", {**parts, "signature.json": b"{}"}, "signature.json: inputs: "),
        ("job", {**parts, "head.json": b"{}"}, "graph"),
        ("job", {**parts, "head.safetensors": parts["body.safetensors"]}, "segment 'head' has no tensor"),
        ("job", without(parts, "ends.json"), "tensor 'stem.0.weight' of segment 'head' is missing"),
        ("job", {**parts, "ends.json": b"{}"}, "tensor 'stem.0.weight' of segment 'head' is missing"),
        ("job", {**parts, "ends.json": b'{"law":1}'}, "ends.json is malformed at law"),
        ("job", {**parts, "loss.json": parts["head.json"]}, "the package's loss is not what its spec says"),
    ]
    for name, changed, told in cases:
        with pytest.raises(PortableError, match=told):
            Job.from_parts(manifest_of(name, changed), changed)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"name":"job","parts":{"../x":{"sha256":"' + b"0" * 64 + b'","size":1}}}',
        b'{"name":"a.b","parts":{}}',
        b'{"format":"other","name":"job","parts":{}}',
        b'{"name":"job","parts":{"spec.json":{"sha256":"x","size":1}}}',
        b"[" * 60_000,
        b" " * 70_000,
    ],
)
def test_a_malformed_manifest_is_refused(manifest: bytes) -> None:
    with pytest.raises(PortableError, match="manifest"):
        Job.from_parts(manifest, {})


# From the user's model ----------------------------------------------------------------------------


def test_a_traced_loss_travels_with_its_constants() -> None:
    job = Job.create(spec_of(loss={"function": named(weighted)}), ROOT)
    assert {"loss.json", "loss.safetensors"} <= set(job.device_parts())
    device = Job.from_parts(job.manifest, job.device_parts())
    for batch in (2, 7):
        outputs, labels = torch.randn(batch, 3, requires_grad=True), torch.randint(0, 3, (batch,))
        assert torch.equal(device.loss((outputs,), (labels,)), weighted(outputs, labels))


def test_one_cut_has_no_tail_and_keeps_labels_shared() -> None:
    job = Job.create(spec_of(model__cuts=["stem"], share_labels=True), ROOT)
    assert job.tail is None
    assert "tail.json" not in job.parts
    x = torch.randn(5, 6)
    assert job.body.eval()(*drawn(job).head.eval()(x))[0].shape == (5, 3)


def test_several_inputs_and_outputs_and_a_shared_input() -> None:
    changes: dict[str, Any] = {
        "model__factory": named(Masked),
        "model__example": named(masked_example),
        "model__inputs": ["image", "keep"],
        "model__targets": ["label", "size"],
        "loss": {"function": named(two_headed)},
    }
    with pytest.raises(CutError, match="mask"):
        Job.create(spec_of(**changes), ROOT)
    job = Job.create(spec_of(**changes, share_inputs=["keep"]), ROOT)
    assert [spec.name for spec in job.signature.inputs] == ["image", "keep"]
    assert [str(spec) for spec in job.signature.outputs] == ["float32[3]", "float32[]"]


def test_an_example_of_one_sample_will_do(job: Job) -> None:
    one = Job.create(spec_of(model__example=named(example_of_one)), ROOT)
    assert one.parts["head.json"] == job.parts["head.json"]
    assert one.signature == job.signature


def test_frozen_groups_are_frozen_in_the_segments() -> None:
    frozen = {"name": "sgd", "lr": 0.1, "groups": [{"pattern": "stem.*", "frozen": True}]}
    job = Job.create(spec_of(optimizer=frozen), ROOT)
    assert not any(parameter.requires_grad for parameter in job.head.parameters())
    assert all(parameter.requires_grad for parameter in job.body.parameters())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__factory": named(example)}, "returned a tuple, not a module"),
        ({"model__example": named(build)}, "must return a pair (inputs, targets)"),
        ({"model__example": named(uneven_example)}, "inputs and targets differ in their first dimension"),
        ({"model__example": named(masked_example)}, "model.example gives 2 inputs, model.inputs names 1"),
        ({"model__factory": named(build_double)}, "parameter stem.0.weight is float64"),
        ({"model__factory": named(Fickle)}, "gives other outputs in evaluation than in training"),
        ({"model__example": named(float_example), "loss__name": "nll"}, "loss nll can't take the example's"),
        ({"loss": {"function": named(per_sample)}}, "a loss must give one scalar tensor"),
        ({"model__cuts": ["stm", "middle"]}, "stem"),
        (
            {"optimizer__groups": [{"pattern": "stm.*", "lr": 1.0}]},
            "optimizer.groups[0].pattern: 'stm.*' matches no parameter (parameters are such as stem.",
        ),
    ],
)
def test_a_model_that_does_not_fit_gets_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as caught:
        Job.create(spec_of(**changes), ROOT)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_newer_version_needs_is_said_before_anything_else(job: Job) -> None:
    assert orjson.loads(job.manifest)["needs"] == ["least-samples", "secret-ends"], "its batch norm wants two"
    assert b"needs" not in manifest_of(job.name, job.parts)
    newer = orjson.loads(manifest_of(job.name, job.parts, needs=["tides", "averaging"]))
    newer |= {"version": 2, "of_then": []}
    with pytest.raises(NeedsNewer) as raised:
        Job.from_parts(orjson.dumps(newer), {})
    assert raised.value.needs == ("averaging", "tides")
    assert f"job {job.name} needs averaging, tides" in str(raised.value)
    for wrong in (["A"], "tides", [1], ["x"] * 33):
        with pytest.raises(PortableError, match="malformed"):
            Job.from_parts(orjson.dumps({**newer, "needs": wrong}), {})


class Words(nn.Module):
    """A bag of words over an embedding whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Embedding(20, 6, sparse=True)
        self.middle = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.out(self.middle(self.stem(words).mean(1)))
        return scores


def build_words() -> nn.Module:
    return Words()


def words_example() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": {"name": "adam", "lr": 0.1}}, "adam can't take a sparse gradient"),
        ({"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}, "sgd with momentum"),
        ({"optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.1}}, "sgd with weight_decay"),
        ({"optimizer": {"name": "sgd", "lr": 0.1}, "clip": {"max_norm": 1.0}}, "[clip]"),
        ({"optimizer": {"name": "sgd", "lr": 0.1}}, None),
        ({"optimizer": {"name": "adam", "lr": 0.1, "groups": [{"pattern": "stem.*", "frozen": True}]}}, None),
    ],
)
def test_sparse_gradients_are_refused_where_the_optimizer_needs_dense_ones(
    settings: dict[str, Any], told: str | None
) -> None:
    spec = parse_job(
        {
            "name": "words",
            "batch_size": 4,
            "epochs": 1,
            "model": {
                "factory": "tests.job.test_package:build_words",
                "example": "tests.job.test_package:words_example",
                "cuts": ["stem", "middle"],
            },
            "loss": {"name": "cross_entropy"},
            **settings,
        }
    )
    if told is None:
        Job.create(spec, ROOT)
        return
    with pytest.raises(JobError, match=r"stem\.weight has sparse=True.*sparse=False") as caught:
        Job.create(spec, ROOT)
    assert told in str(caught.value)
