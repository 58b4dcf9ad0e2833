"""An error of tracing names the part, the module, the line, and what would do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from spliteasy import split, trace_function
from spliteasy.errors import CutError, JobError
from spliteasy.splitting.remedies import REMEDIES, remedy


class Does(nn.Module):
    """Does something to its input."""

    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.what, self.layer = what, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return self.what(self.layer(x))


class Net(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(8, 8), middle, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.middle(self.enter(x)))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x[:, None], torch.ones(4, dtype=torch.int64), batch_first=True)
        return self.recurrent(packed)[1][0][-1]


class SetsData(nn.Module):
    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.centre.data = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        return x - self.centre


def branch(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def checked(x: Tensor) -> Tensor:
    assert x.min() > -100
    return x


def validated(x: Tensor) -> Tensor:
    return torch.distributions.Normal(x, 1.0, validate_args=True).rsample()


def differentiates(x: Tensor) -> Tensor:
    return x + torch.autograd.grad(x.tanh().sum(), x, create_graph=True)[0]


def halves(x: Tensor) -> Tensor:
    first, second = torch.cat((x, x)).chunk(2)
    return first + second


@pytest.mark.parametrize(
    ("middle", "said"),
    [
        (Does(branch), ["module middle", "`if x.sum() > 0:` (test_remedies.py, line", "torch.where"]),
        (Does(checked), ["module middle", "`assert x.min() > -100`", "leave out the check"]),
        (Does(lambda x: x * int(x.argmax())), ["module middle", "keep the value a tensor"]),
        (Does(lambda x: x * x.sum().item()), ["aten.item", "keep the value a tensor"]),
        (Does(lambda x: x * torch.tensor(x.sum(1).tolist()).mean()), ["keep the value a tensor"]),
        (Does(lambda x: x + torch.from_numpy(np.sin(x.detach().numpy()))), ["module middle", "numpy"]),
        (Does(validated), ["module middle", "rsample()", "validate_args=False"]),
        (Does(halves), [".chunk(2)` (test_remedies.py", "by slices"]),
        (Does(lambda x: x.view(4, 8)), ["module middle", "keep the batch size free"]),
        (Does(lambda x: x[x > 0].sum() * x), ["must not depend on values"]),
        (Does(lambda x: torch.linalg.lstsq(x.mT @ x, x.mT)[0].mT), ["linalg.lstsq", "linalg.pinv"]),
        (Does(lambda x: torch.nextafter(x, 0 * x)), ["module middle", "it has no derivative", "tanh"]),
        (nn.BatchNorm1d(8, momentum=None), ["module middle", "momentum"]),
        (Does(differentiates), ["torch.autograd.grad in the forward can't be traced"]),
        (SetsData(), ["module middle", "not by .data"]),
        (Packed(), ["module middle", "padded batch"]),
        (nn.LazyLinear(8), ["middle.weight", "lazy layers", "call the model once in its factory"]),
    ],
    ids=lambda value: None if isinstance(value, nn.Module) else value[-1],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_of_a_model(middle: nn.Module, said: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        split(Net(middle).train(), torch.randn(4, 8), ("enter", "middle"))
    told = str(caught.value)
    assert [part for part in ["the model", *said] if part not in told] == [], told
    assert "\n" not in told
    assert len(told) < 700


def test_of_a_loss() -> None:
    def clipped(output: Tensor, target: Tensor) -> Tensor:
        loss = (output - target).pow(2).mean()
        return loss if loss < 1 else loss.sqrt()

    with pytest.raises(JobError) as caught:
        trace_function(clipped, (torch.randn(4, 3),), (torch.randn(4, 3),))
    told = str(caught.value)
    assert "can't trace the loss in train mode" in told
    assert "`return loss if loss < 1 else loss.sqrt()` (test_remedies.py, line" in told
    assert "torch.where" in told
    assert "model" not in told


def test_an_operator_of_a_loss() -> None:
    with pytest.raises(JobError, match=r"the loss can't be made portable: .*nextafter"):
        trace_function(
            lambda out, _: torch.nextafter(out, 0 * out).mean(), (torch.randn(4, 3),), (torch.randn(4),)
        )


def test_a_module_that_is_called_on_each_input_is_named() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.middle, self.out = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.out(self.middle(self.enter(a))), self.out(self.middle(self.enter(b)))

    with pytest.raises(CutError, match=r"module middle is called several times: .*torch\.cat"):
        split(Siamese(), (torch.randn(4, 8), torch.randn(4, 8)), ("enter", "middle"))


def test_every_remedy_can_be_reached() -> None:
    """None hides behind one before it that is more general."""
    assert len({pattern for pattern, _ in REMEDIES}) == len({told for _, told in REMEDIES}) == len(REMEDIES)
    words = {
        "data-dependent expression u0 torch/nn/modules/batchnorm.py": "momentum",
        "data-dependent expression `if mask.item():`": "keep the value",
        "data-dependent expression": "torch.where",
        "operator aten.nonzero.default": "shape",
        "aten._nested_tensor_from_mask": "enable_nested_tensor",
        "tensors of type ScriptModule": "torch.jit",
        "a dynamo-optimized function": "torch.compile",
        "aten.fake_quantize_per_tensor_affine": "quantise",
        "operator aten.linalg_lstsq.default": "linalg.pinv",
        "the model returns DynamicCache": "use_cache",
    }
    assert [text for text, told in words.items() if told not in (remedy(text) or "")] == []
