"""Complex numbers live within a segment, as buffers too, and do not cross a cut."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from spliteasy import split
from spliteasy.errors import CutError, PortableError
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from tests.splitting.parity import compare


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x)


class Back(nn.Module):
    def forward(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft(spectrum)


class Rotating(nn.Module):
    """Turns pairs of features by fixed angles, as some transformers tell positions apart."""

    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.spectrum, self.back = Spectrum(), Back()
        self.register_buffer("turns", torch.polar(torch.ones(4), torch.arange(4.0)), persistent=False)
        self.register_buffer("unused", torch.ones(2, dtype=torch.complex128))

    def turned(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * self.turns).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turned(self.enter(x))
        x = self.back(self.spectrum(self.middle(x)))
        return self.out(self.turned(torch.tanh(x)))


BATCHES = [(torch.randn(size, 6, generator=torch.Generator().manual_seed(size)),) for size in (4, 2, 3)]


@pytest.mark.parametrize("cuts", [("enter", "back"), ("middle", "back"), "enter"])
def test_same_bits(cuts: str | tuple[str, str]) -> None:
    model = Rotating()
    parts = split(model, BATCHES[0], cuts)
    assert compare(model, parts, BATCHES) == {}
    assert parts.state_dict().keys() == model.state_dict().keys()


def test_they_do_not_cross() -> None:
    with pytest.raises(CutError, match=r"would cross as torch\.complex64"):
        split(Rotating(), BATCHES[0], ("enter", "spectrum"))


def test_they_are_stored_as_pairs() -> None:
    turns = torch.polar(torch.ones(3, 2), torch.randn(3, 2))
    given = {"a": turns, "b": turns.to(torch.complex128).T, "c": turns.conj(), "d": torch.randn(2)}
    read = tensors_from_bytes(tensors_to_bytes(given))
    assert all(
        torch.equal(read[name], given[name]) and read[name].dtype == given[name].dtype for name in given
    )
    assert read["b"].stride() == given["b"].stride()


@pytest.mark.parametrize("told", ['["a"]', '["z"]', "3", "[[]]"])
def test_pairs_that_are_none_are_refused(told: str) -> None:
    with pytest.raises(PortableError, match=r"complex"):
        tensors_from_bytes(save({"a": torch.ones(3)}, {"complex": told}))
