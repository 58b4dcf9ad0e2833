"""A job of samples with lengths: what travels, and what is refused at submit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spliteasy.errors import JobError, NeedsNewer, PortableError
from spliteasy.graph.document import FreeDim, ValueSpec, extent_of, misfit
from spliteasy.graph.encoding import document_from_json
from spliteasy.graph.segment import Segment, load_segment, load_segment_tensors
from spliteasy.job import Job, parse_job
from spliteasy.job import package as package_module
from spliteasy_cli.support.browser import browser_gaps
from tests.lengths import reader
from tests.lengths.reader import LONGEST, job_of, settings


@pytest.fixture(scope="module")
def job() -> Job:
    return job_of()


def test_the_segments_give_what_the_model_gives_at_every_length(job: Job) -> None:
    torch.manual_seed(1)
    model = reader.build()
    assert job.tail is not None
    head, body, tail = (each.spawn(own_of(model, each)) for each in (job.head, job.body, job.tail))
    for length in range(2, LONGEST + 1):
        ids = torch.randint(reader.CHARACTERS, (3, length))
        mask = (torch.arange(length) < torch.tensor([[length], [1], [length - 1]])).long()
        values = head(ids, mask)
        down = body(*values[: head.n_wire])
        (scores,) = tail(*down, *values[head.n_wire :])
        assert torch.equal(torch.as_tensor(scores), model(ids, mask))


def own_of(model: nn.Module, segment: Segment) -> dict[str, Tensor]:
    return {name: model.state_dict()[name] for name in segment.state_dict()}


def test_what_crosses_grows_with_the_length(job: Job) -> None:
    shapes = {spec.shape for spec in job.head.output_values}
    assert (FreeDim(batch=1), FreeDim(length=1), reader.WIDTH) in shapes
    first = job.body.input_values[0]
    assert first.bytes_for(4, 8) == 2 * first.bytes_for(4, 4)
    assert first.per_length


def test_costs_are_those_of_the_longest(job: Job) -> None:
    shorter = job_of(model={"max_length": 4, "example": "tests.lengths.test_job:short_example"})
    assert job.body.program.costs.train_bytes > shorter.body.program.costs.train_bytes > 0
    assert job.body.program.costs.eval_flops > shorter.body.program.costs.eval_flops > 0


def short_example() -> Any:
    ids = torch.arange(8).reshape(2, 4)
    return (ids, torch.ones_like(ids)), ids


def test_the_signature_says_what_has_a_length(job: Job) -> None:
    (scores,), (ids, _), (following,) = job.signature.outputs, job.signature.inputs, job.signature.targets
    assert ids.shape_at(3) == following.shape_at(3) == (3,)
    assert scores.shape_at(5) == (5, reader.CHARACTERS)
    assert job.signature.length_of((torch.zeros(2, 7), torch.zeros(2, 7))) == 7


def test_a_package_says_that_it_needs_lengths(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "lengths" in job.needs()
    monkeypatch.setattr(package_module, "FEATURES", package_module.FEATURES - {"lengths"})
    with pytest.raises(NeedsNewer, match="lengths"):
        Job.from_parts(job.manifest, job.parts)


def test_a_job_without_lengths_is_the_same_bytes_as_before() -> None:
    fixed = job_of(model={"max_length": None, "pad": None})
    for part in ("spec.json", "signature.json", "head.json", "body.json", "tail.json", "loss.json"):
        for key in (b'"max_length"', b'"pad"', b'"length_dims"', b'"length"'):
            assert key not in fixed.parts[part]
    assert "lengths" not in fixed.needs()


def test_a_graph_that_misstates_a_length_is_refused(job: Job) -> None:
    graph = job.parts["body.json"].replace(b'"length":1', b'"length":2', 1)
    with pytest.raises(PortableError):
        load_segment(
            graph,
            load_segment_tensors(job.parts["body.safetensors"]),
            batches=package_module.batches_of(job.spec),
        )
    with pytest.raises(PortableError, match="malformed"):
        document_from_json(job.parts["body.json"].replace(b'"length":1', b'"length":-1'))
    with pytest.raises(PortableError, match="malformed"):
        document_from_json(job.parts["body.json"].replace(b'{"length":1}', b"{}"))


def test_batch_and_length_are_read_from_shapes() -> None:
    tokens = ValueSpec(name="t", dtype="float32", shape=(FreeDim(both=1), 4))
    scores = ValueSpec(name="s", dtype="float32", shape=(FreeDim(batch=2), FreeDim(length=1, plus=-1)))
    values = [torch.zeros(12, 4), torch.zeros(8, 2)]
    assert extent_of([tokens, scores], values) == (4, 3)
    assert extent_of([tokens], values) == (None, None)
    assert misfit([tokens, scores], values) is None
    assert misfit([tokens, scores], [torch.zeros(13, 4), values[1]]) is not None
    assert misfit([scores], [torch.zeros(7, 2)]) is None, "nothing shows the batch"


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("no input with a length", {"model": {"pad": {"next": -100}}}, r"model\.pad"),
    ("padding without a length", {"model": {"max_length": None}}, r"model\.max_length says"),
    ("padding of no input", {"model": {"pad": {"ids": 0, "words": 0}}}, "neither input nor target"),
    ("an example of another length", {"model": {"max_length": 8}}, "size 9 in dimension 1"),
    ("a model of one length", {"model": {"factory": "tests.lengths.reader:of_one_length"}}, "length"),
    (
        "a recurrent layer",
        {"model": {"factory": "tests.lengths.reader:recurrent"}},
        r"self\.middle.*can't have any length of 2 to 9",
    ),
    ("a loss that counts padding", {"loss": {"function": "tests.lengths.reader:of_all_places"}}, "padded"),
    ("labels padded with a class", {"model": {"pad": {"ids": 0, "mask": 0, "next": 0}}}, "padded"),
    ("tokens in another order", {"privacy": {"shuffle_tokens": True}}, "shuffle_tokens"),
    ("peer labels", {"privacy": {"peer_labels": True}}, "peer_labels"),
    ("nopeek", {"privacy": {"nopeek": 0.5}}, "nopeek"),
    ("rounds", {"fleet": {"mode": "splitfed"}}, "fleet"),
    ("error feedback", {"link": {"activations": "topk:0.1"}}, "topk"),
)


@pytest.mark.parametrize(("changes", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_lengths_can_not_be_had_with_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(JobError, match=reason):
        Job.create(parse_job(settings(**changes)))


def test_a_model_of_one_length_is_told_what_to_do() -> None:
    with pytest.raises(JobError) as refused:
        job_of(model={"factory": "tests.lengths.reader:of_one_length"})
    assert refused.value.hint
    assert "x.shape" in refused.value.hint or "branches" in refused.value.hint


def test_labels_of_a_named_loss_are_padded_with_what_it_ignores() -> None:
    changes = {"pad": {"ids": 0, "mask": 0, "next": 1}}
    with pytest.raises(JobError, match=r"pad labels with -100"):
        parse_job(settings(model=changes, loss={"name": "cross_entropy"}))


def test_a_browser_lacks_lengths_by_name(job: Job) -> None:
    assert any("max_length" in gap for gap in browser_gaps(job))
