"""The laws of a model's tensors are recorded, repeated bit for bit, and drawn again from a key."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spliteasy.graph.document import DTYPE_NAMES, TensorSpec
from spliteasy.privacy.ends import Ends, draw, ends_from_json
from spliteasy.privacy.made import make_ends
from spliteasy.privacy.recording import recorded
from spliteasy.runtime.randomness import Key, drawing, state_of
from tests.privacy.factories import CASES, of


class Table:
    """The part of a segment that matters here: the table of the model's tensors, and their values."""

    def __init__(self, model: nn.Module) -> None:
        self.program = self.document = self
        self.model_tensors = tensors_of(model)
        self.tensors = Entries(self.model_tensors)


class Entries(tuple[TensorSpec, ...]):
    """The table, which is called for the values."""

    values: dict[str, Tensor]

    def __new__(cls, tensors: dict[str, Tensor]) -> Entries:
        made = super().__new__(cls, (spec_of(name, tensor) for name, tensor in tensors.items()))
        made.values = tensors
        return made

    def __call__(self) -> dict[str, Tensor]:
        return self.values


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(
        names=(name,),
        kind="parameter" if isinstance(tensor, nn.Parameter) else "buffer",
        dtype=DTYPE_NAMES[tensor.dtype],  # type: ignore[arg-type]
        shape=tuple(tensor.shape),
        requires_grad=tensor.requires_grad,
    )


def ends_of(model: nn.Module, recording: object) -> Ends:
    return make_ends(recording, {"head": Table(model)}, tensors_of(model))  # type: ignore[arg-type, dict-item]


@pytest.mark.parametrize("name", CASES)
def test_each_tensor_is_drawn_or_named(name: str) -> None:
    case = CASES[name]
    with drawing(state_of(5)), recorded() as recording:
        model = case.make()
    ends = ends_of(model, recording)
    tensors = tensors_of(model)
    assert ends.public_of("head") == case.public
    assert tensors.keys() - ends.of("head").keys() == {*case.public, *case.constant}
    assert ends_from_json(ends.to_json()) == ends


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.public])
def test_what_a_key_draws_follows_the_models_own_law(name: str) -> None:
    """Mean and spread of many draws by torch and by keys are the same, and so are the constant parts."""
    case = CASES[name]
    with drawing(state_of(5)), recorded() as recording:
        model = case.make()
    ends = ends_of(model, recording)
    ours = [draw(ends, Key(bytes([number] * 32)))["head"] for number in range(24)] if ends.drawn else []
    theirs = []
    for number in range(len(ours)):
        with drawing(state_of(100 + number)):
            theirs.append(tensors_of(case.make()))
    for tensor in ends.of("head"):
        drawn, made = (torch.stack([values[tensor].detach() for values in each]) for each in (ours, theirs))
        assert drawn.stride()[1:] == made.stride()[1:]
        if name == "own generator":  # torch gives the same numbers each time there
            made = drawn.new_empty(drawn.shape).normal_(generator=torch.Generator().manual_seed(1))
        spread = float(made.std()) + 1e-12
        count = drawn.numel() ** 0.5
        assert abs(float(drawn.mean() - made.mean())) < 8 * spread / count + 1e-7
        assert 0.85 < float(drawn.std()) / spread < 1.15 or made.numel() < 800
        assert float(drawn.min()) >= float(made.min()) - spread * 2
        assert float(drawn.max()) <= float(made.max()) + spread * 2


def test_two_tensors_of_one_source_stay_alike() -> None:
    with drawing(state_of(5)), recorded() as recording:
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    drawn = draw(ends_of(model, recording), Key(bytes(32)))["head"]
    for name in ("self_attn.in_proj_weight", "linear1.weight", "linear2.weight"):
        assert torch.equal(drawn[f"layers.0.{name}"], drawn[f"layers.1.{name}"])
    with drawing(state_of(5)), recorded() as recording:
        normed = CASES["weight norm"].make()
    drawn = draw(ends_of(normed, recording), Key(bytes(32)))["head"]
    g, v = (drawn[f"parametrizations.weight.original{place}"] for place in (0, 1))
    assert torch.allclose(g, v.norm(dim=1, keepdim=True))
    with drawing(state_of(5)), recorded() as recording:
        embedding = CASES["embedding"].make()
    assert not draw(ends_of(embedding, recording), Key(bytes(32)))["head"]["weight"][0].any()


def test_orthogonal_weights_stay_orthogonal() -> None:
    with drawing(state_of(5)), recorded() as recording:
        model = CASES["orthogonal"].make()
    weight = draw(ends_of(model, recording), Key(bytes(32)))["head"]["0"]
    assert torch.allclose(weight @ weight.t(), torch.eye(12), atol=1e-5)


def test_any_bit_of_a_key_changes_the_weights() -> None:
    with drawing(state_of(5)), recorded() as recording:
        model = of(lambda: torch.randn(20, 20))
    ends = ends_of(model, recording)
    first = draw(ends, Key(bytes(32)))["head"]["0"]
    assert torch.equal(first, draw(ends, Key(bytes(32)))["head"]["0"])
    for place in (0, 13, 31):
        for bit in (1, 128):
            other = draw(ends, Key(bytes(bit if at == place else 0 for at in range(32))))["head"]["0"]
            assert float((first == other).double().mean()) < 0.01


def test_what_python_draws_itself_is_not_repeated() -> None:
    """A write that torch does not see: the law gives other bits, and the tensor is public."""

    def make() -> Tensor:
        weight = torch.randn(9, 9)
        weight.numpy()[0, 0] = 5.0
        return weight

    with drawing(state_of(5)), recorded() as recording:
        model = of(make)
    assert ends_of(model, recording).public_of("head") == {"0": "not-repeated"}
