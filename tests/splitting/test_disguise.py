"""A raw input does not cross the cut under another name; what mixes inputs does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spliteasy import split
from spliteasy.errors import CutError
from spliteasy.splitting.disguise import find_disguises
from spliteasy.splitting.export import trace_model
from spliteasy.splitting.split import split_traced

Forward = Callable[["Head", Tensor], Tensor]


class Head(nn.Module):
    """A head with layers that a test's function may use."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self._forward = forward
        self.same = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        nn.init.dirac_(self.same.weight)
        self.conv, self.each = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 2, 1, groups=2)
        self.norm, self.plane, self.layer = nn.BatchNorm2d(2), nn.InstanceNorm2d(2), nn.LayerNorm([2, 6, 6])
        self.drop, self.linear, self.mix = nn.Dropout(0.4), nn.Linear(72, 9), nn.Conv2d(2, 5, 1)
        self.scale, self.down = nn.Parameter(torch.rand(2, 6, 6) + 0.5), nn.Conv2d(2, 8, 2, stride=2)
        self.behind = nn.BatchNorm2d(6)
        self.tiny = nn.Parameter(torch.randn(4, 1, 2, 2))
        self.single = nn.Conv2d(2, 2, 1, groups=2)
        self.register_buffer("turn", torch.linalg.qr(torch.randn(72, 72))[0])
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class Cut(nn.Module):
    """A head, and a body that takes whatever it gives."""

    def __init__(self, forward: Forward, example: Tensor) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.head = Head(forward)
        with torch.no_grad():
            self.body = nn.Linear(self.head(example).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(self.head(x).flatten(1).float())
        return made


def _canvas(x: Tensor) -> Tensor:
    canvas = x.new_zeros(x.shape[0], 2, 8, 8)
    canvas[:, :, 1:7, 1:7] = x
    return canvas


PIXELS = torch.randperm(36, generator=torch.Generator().manual_seed(1))

DISGUISES: dict[str, Forward] = {
    "times one": lambda head, x: x * 1,
    "plus nothing": lambda head, x: x + 0,
    "relu": lambda head, x: x.relu(),
    "dropout": lambda head, x: head.drop(x),
    "identity convolution": lambda head, x: head.same(x),
    "depthwise": lambda head, x: head.each(x),
    "sliced and joined": lambda head, x: torch.cat((x[:, :1] * 2, x[:, 1:]), 1),
    "a part": lambda head, x: x[:, :, 2:4] * 1.0,
    "canvas": lambda head, x: _canvas(x),
    "padded": lambda head, x: nn.functional.pad(x, (1, 1, 2, 0)) + 1,
    "permuted": lambda head, x: x.flatten(2)[:, :, PIXELS] * 2,
    "transposed": lambda head, x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1) + 0,
    "rounded": lambda head, x: x.round(),
    "flipped": lambda head, x: x.flip(-1) - 1,
    "channels swapped": lambda head, x: nn.functional.channel_shuffle(x, 2) * 1,
    "scaled": lambda head, x: x * 0.25 + 3,
    "own scales": lambda head, x: x * head.scale,
    "sigmoid": lambda head, x: x.sigmoid(),
    "tanh": lambda head, x: x.tanh(),
    "exp": lambda head, x: (-3 * x).exp(),
    "log": lambda head, x: x.log(),
    "silu": lambda head, x: nn.functional.silu(x),
    "joined with features": lambda head, x: torch.cat((head.conv(x), x * 1), 1),
    "pixels unshuffled": lambda head, x: nn.functional.pixel_unshuffle(x, 2) * 1,
    "rolled": lambda head, x: x.roll(2, -1) * 1,
    "half": lambda head, x: x.half().float(),
    "double": lambda head, x: x.double(),
    "batch norm": lambda head, x: head.norm(x),
    "instance norm": lambda head, x: head.plane(x),
    "layer norm": lambda head, x: head.layer(x),
    "softmax": lambda head, x: x.flatten(1).softmax(1),
    "unit length": lambda head, x: nn.functional.normalize(x.flatten(1), dim=1),
    "threshold": lambda head, x: (x > 0.5).float(),
    "masked": lambda head, x: x.masked_fill(x > 0.9, 0.0),
    "distance": lambda head, x: (x - 0.5).abs(),
    "noise": lambda head, x: x + 0.1 * torch.randn_like(x),
    "nothing added": lambda head, x: x + 0 * head.conv(x)[:, :2],
    "differences": lambda head, x: x.diff(dim=-1),
    "running sums": lambda head, x: x.cumsum(-1)[..., 1:],
    "sorted": lambda head, x: x.flatten(1).sort(1).values,
    "turned by a known matrix": lambda head, x: x.flatten(1) @ head.turn,
    "residual without weights": lambda head, x: x + 0.3 * x.roll(1, -1),
    "every second pixel": lambda head, x: head.single(x)[:, :, ::2],
    "one pixel beside features": lambda head, x: torch.cat((head.conv(x).flatten(1), x[:, 0, 0, :1]), 1),
    "there and back": lambda head, x: (x + head.conv(x).mean()) - head.conv(x).mean(),
}


def picture(rows: int = 4) -> Tensor:
    return torch.rand(rows, 2, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", DISGUISES)
def test_an_input_in_disguise_is_refused(name: str) -> None:
    example = picture()
    found = trace_model(Cut(DISGUISES[name], example), example)
    with pytest.raises(CutError, match=r"model's input x (out of the device, each|would leave)"):
        split_traced(found, "head")
    split_traced(found, "head", share_inputs=("x",))


def test_a_refusal_names_mode_value_operator_and_module() -> None:
    example = picture()
    with pytest.raises(CutError) as caught:
        split(Cut(DISGUISES["dropout"], example), example, "head")
    assert "dropout (aten.dropout.default in module 'head.drop') would carry" in str(caught.value)
    assert "share_inputs=('x',) allows it" in str(caught.value)


def _attention(head: Head, x: Tensor) -> Tensor:
    rows = x.reshape(x.shape[0], 6, 12)
    made: Tensor = head.attention(rows, rows, rows)[0]
    return made


HONEST: dict[str, Forward] = {
    "convolution": lambda head, x: head.conv(x),
    "convolution and relu": lambda head, x: head.conv(x).relu(),
    "stem": lambda head, x: head.behind(head.conv(x)).relu(),
    "stem with dropout": lambda head, x: head.drop(head.behind(head.conv(x)).relu()),
    "patches": lambda head, x: head.down(x).flatten(2),
    "one by one": lambda head, x: head.mix(x),
    "linear": lambda head, x: head.linear(x.flatten(1)),
    "linear and softmax": lambda head, x: head.linear(x.flatten(1)).softmax(1),
    "mean of pixels": lambda head, x: nn.functional.avg_pool2d(x, 2),
    "greatest of pixels": lambda head, x: nn.functional.max_pool2d(x, 2),
    "mean of channels": lambda head, x: x.mean(1),
    "greatest of channels": lambda head, x: x.amax(1),
    "sum of all": lambda head, x: x.sum((1, 2, 3))[:, None],
    "residual": lambda head, x: x + head.conv(x)[:, :2],
    "gated": lambda head, x: x * head.conv(x)[:, :2].sigmoid(),
    "attention": _attention,
    "gram": lambda head, x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "norms": lambda head, x: x.norm(dim=(2, 3)),
    "products": lambda head, x: x[:, :1] * x[:, 1:],
    "blurred": lambda head, x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")[..., 3:9:2],
    "convolution to nothing": lambda head, x: (head.conv(x) - 100).relu() + head.linear.weight.sum(),
    "many layers": lambda head, x: head.linear(head.mix(x)[:, :2].tanh().flatten(1)).sigmoid(),
    "sign of features": lambda head, x: (head.conv(x) > 0).float(),
    "normalised and convolved": lambda head, x: head.conv(head.norm(x)),
    "pooled and convolved": lambda head, x: head.conv(nn.functional.max_pool2d(x, 2)),
    "corners of a padded convolution": lambda head, x: nn.functional.conv2d(x[:, :1], head.tiny, padding=1),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_head_that_mixes_elements_may_send(name: str) -> None:
    example = picture()
    assert split(Cut(HONEST[name], example), example, "head").lookups == ()


class Rows(nn.Module):
    """A first layer on few numbers, and a body."""

    def __init__(self, first: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.head = first
        with torch.no_grad():
            self.body = nn.Linear(self.head(example).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(self.head(x).flatten(1))
        return made


class Recurrent(nn.Module):
    """All hidden states of an LSTM."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.lstm(x)[0]
        return states


FEW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "two numbers": (lambda: nn.Linear(2, 64), (2,)),
    "four numbers, very wide": (lambda: nn.Linear(4, 1 << 16), (4,)),
    "four numbers, wide, relu": (lambda: nn.Sequential(nn.Linear(4, 4096), nn.ReLU()), (4,)),
    "three numbers, two layers": (lambda: nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 8)), (3,)),
    "table of features": (lambda: nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 16)), (7,)),
    "a series": (lambda: Recurrent(1), (12, 1)),
    "several series": (lambda: Recurrent(3), (12, 3)),
    "beats": (lambda: nn.Sequential(nn.Conv1d(1, 8, 7, 2, 3), nn.BatchNorm1d(8), nn.ReLU()), (1, 64)),
    "patches": (lambda: nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2)), (3, 16, 16)),
    "causal": (lambda: nn.Sequential(nn.ConstantPad1d((1, 0), 0.0), nn.Conv1d(1, 8, 2)), (1, 20)),
}


@pytest.mark.parametrize("name", FEW)
def test_first_layers_on_few_numbers_may_send(name: str) -> None:
    make, shape = FEW[name]
    torch.manual_seed(6)
    example = torch.randn(4, *shape)
    split(Rows(make(), example), example, "head")


class Words(nn.Module):
    """Whole numbers through a table, and what a test's function makes of both."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self._forward = forward
        self.table, self.join, self.body = nn.Embedding(20, 6), nn.Flatten(), nn.LazyLinear(2)

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.body(self.join(self._forward(self.table(ids), ids)))
        return made


def words(rows: int = 8) -> Tensor:
    return torch.randint(0, 20, (rows, 7), generator=torch.Generator().manual_seed(3))


def _words(forward: Callable[[Tensor, Tensor], Tensor]) -> Words:
    model = Words(forward)
    with torch.no_grad():
        model(words())
    return model


@pytest.mark.parametrize(
    "forward",
    [
        lambda found, ids: found + 0,
        lambda found, ids: found * (ids != 0).float()[..., None],
        lambda found, ids: found + torch.arange(7)[:, None],
    ],
    ids=["embedding", "padding masked", "positions"],
)
def test_a_table_may_send_and_is_told(forward: Callable[[Tensor, Tensor], Tensor]) -> None:
    (told,) = split(_words(forward), words(), "join").lookups
    assert "the input 'ids' crosses the cut through a table" in told


@pytest.mark.parametrize(
    "forward",
    [
        lambda found, ids: torch.cat((found, ids[..., None] * 0.5), 2),
        lambda found, ids: ids / 20,
        lambda found, ids: ids.flip(1).float().sqrt(),
    ],
    ids=["beside its embedding", "divided", "flipped"],
)
def test_whole_numbers_in_disguise_are_refused(forward: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(CutError, match="model's input ids out of the device"):
        split(_words(forward), words(), "join")


def test_finding_leaves_segment_and_generators_alone() -> None:
    example = picture()
    head = split(Cut(HONEST["stem"], example), example, "head").head
    before, state = head.tensors_bytes(), torch.get_rng_state()
    assert find_disguises(head, (example,), training=True) == []
    assert head.tensors_bytes() == before
    assert torch.equal(torch.get_rng_state(), state)
