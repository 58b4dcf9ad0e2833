"""A cut that can't be right is refused with what is wrong and what would do."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from spliteasy import split
from spliteasy.errors import CutError, JobError
from spliteasy.splitting.split import split_traced
from tests.models.chains import Chain
from tests.models.oddities import Frozen
from tests.models.sequences import GPT
from tests.splitting.networks import Cuts, traced
from tests.splitting.parity import compare


@pytest.mark.parametrize(
    ("name", "cuts", "message"),
    [
        ("chain", "stam", "no module 'stam' (did you mean 'stem'"),
        ("chain", "mid.7", "no module 'mid.7' (did you mean 'mid.1', 'mid.0'"),
        (
            "chain",
            ("pool", "stem"),
            "cut 'pool' comes after 'stem' in the model (write cuts = ('stem', 'pool'))",
        ),
        ("chain", ("mid", "mid.1"), "the body would be empty: nothing runs between 'mid' and 'mid.1'"),
        ("chain", ("stem", "fc"), "the tail would be empty: nothing runs after 'fc'"),
        ("chain", "fc", "the body would be empty: nothing runs after 'fc'"),
        ("chain", ("stem", "mid", "pool"), "3 cuts given"),
        ("called again", "relu#4", "module 'relu' is called 3 times, so there is no 'relu#4'"),
        ("called again", "again#1", "parameter again.weight is used by head and body"),
        ("early weights", "tanh", "exp, computed from both alone, is used by the head and on the server"),
        ("two inputs", "mid", "the model's input row would leave the device"),
        (
            "masked transformer",
            ("tokens", "layer2"),
            "input ids would leave the device (cut after 'layer1.self_attn'",
        ),
    ],
)
def test_refused(name: str, cuts: Cuts, message: str) -> None:
    with pytest.raises(CutError, match=re.escape(message)):
        split_traced(traced(name)[1], cuts)


def test_tied_weights_are_named_by_all_their_names() -> None:
    with pytest.raises(CutError, match=re.escape("tokens.weight = out.weight is used by head and body")):
        split(GPT(tied=True), torch.randint(0, 20, (2, 12)), "blocks.0")


def test_an_input_may_be_shared_by_name() -> None:
    model, found = traced("two inputs")
    parts = split_traced(found, "mid", share_inputs=("row",))
    assert [value.name for value in parts.boundaries[0].values] == ["row", "linear_2"]
    batches = [(torch.randn(3, 3, 8, 8), torch.randn(3, 5)) for _ in range(2)]
    assert compare(model, parts, batches) == {}
    with pytest.raises(CutError, match="no input of the model"):
        split_traced(found, "mid", share_inputs=("line",))


def test_a_view_of_an_input_is_the_input() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.a, self.b = nn.Flatten(), nn.Linear(12, 4), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            flat = self.flat(x.transpose(1, 2).contiguous())
            return self.b(torch.cat((self.a(flat), flat), 1))

    for cut in ("flat", "a"):
        with pytest.raises(CutError, match="input x would leave the device"):
            split(Turned(), torch.randn(2, 3, 4), cut)


class Ghost(nn.Module):
    """Reads a value out of a tensor: no batch of it can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x if x.sum().item() > 0 else -x


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(4, 6))


class OffTheList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.special.bessel_j0(self.a(x)))


class Writes(nn.Module):
    """Writes into an activation where no functional form can follow."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(6, 6), nn.Linear(6, 6), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.how == "detached":
            x.detach().mul_(2.0)
        elif self.how == "without gradients":
            with torch.no_grad():
                x.mul_(2.0)
        elif self.how == "strided":
            x.as_strided((2, 2), (6, 1)).mul_(2.0)
        return self.b(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Writes("detached"), "writes into a detached activation"),
        (Writes("without gradients"), "writes into an activation under no_grad"),
        (Writes("strided"), "writes into a tensor that overlaps itself"),
        (Ghost(), "can't trace the model in train mode"),
        (FixedBatch(), "can't trace the model in train mode"),
        (OffTheList(), "operator aten.special_bessel_j0.default is not portable: it has no derivative"),
    ],
)
def test_models_that_cannot_travel(model: nn.Module, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError, match=re.escape(message)):
        split(model, torch.randn(4, 6), "a")
    assert capfd.readouterr().err == ""


def test_example_inputs_are_checked() -> None:
    with pytest.raises(JobError, match="differ in batch size"):
        split(Chain(), (torch.randn(2, 1, 8, 8), torch.randn(3)), "stem")
    with pytest.raises(JobError, match="batch first"):
        split(Chain(), torch.tensor(1.0), "stem")


def test_a_batch_of_one_will_do_as_an_example() -> None:
    parts = split(Chain(), torch.randn(1, 1, 8, 8), "stem")
    assert parts.head(torch.randn(5, 1, 8, 8))[0].shape == (5, 6, 8, 8)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = Frozen().train(), torch.randn(2, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    split(model, inputs, "a")
    assert model.training
    assert not model.norm.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
