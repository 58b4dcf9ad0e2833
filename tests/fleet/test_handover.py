"""A sealed handover: the next device reads it to the last bit, and nobody else, nor a changed one."""

from __future__ import annotations

import pytest
import torch

from spliteasy.fleet.handover import ForeignHandover, open_handover, seal_handover
from spliteasy.runtime.randomness import Key

KEY, OTHER = Key(bytes(32)), Key(bytes(31) + b"1")
TENSORS = {
    "head/model/0.weight": torch.tensor([[1e-30, -0.0], [float("inf"), 3.0]]),
    "head/model/1.num_batches_tracked": torch.tensor(7),
    "head/optimizer/0.weight/exp_avg": torch.full((2, 2), 1e-12, dtype=torch.float64),
}
PLACE = {"device": "phone-1", "turn": 3, "nonce": "ab" * 8}


def test_it_is_the_same_to_the_last_bit() -> None:
    found = open_handover(seal_handover(TENSORS, key=KEY, **PLACE), key=KEY, **PLACE)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_another_key_place_or_byte_is_noticed() -> None:
    sealed = seal_handover(TENSORS, key=KEY, **PLACE)
    places = [{"device": "phone-2"}, {"turn": 4}, {"nonce": "cd" * 8}]
    for change in places:
        with pytest.raises(ForeignHandover):
            open_handover(sealed, key=KEY, **{**PLACE, **change})
    with pytest.raises(ForeignHandover):
        open_handover(sealed, key=OTHER, **PLACE)
    for at in (0, len(sealed) // 2, len(sealed) - 1):
        spoilt = sealed.clone()
        spoilt[at] ^= 1
        with pytest.raises(ForeignHandover):
            open_handover(spoilt, key=KEY, **PLACE)
    with pytest.raises(ForeignHandover):
        open_handover(sealed[:40], key=KEY, **PLACE)


def test_two_handovers_of_the_same_have_nothing_in_common() -> None:
    one = seal_handover(TENSORS, key=KEY, **PLACE)
    other = seal_handover(TENSORS, key=KEY, **{**PLACE, "nonce": "cd" * 8})
    assert float((one == other).float().mean()) < 0.1
    plain = seal_handover({}, key=KEY, **PLACE)
    assert open_handover(plain, key=KEY, **PLACE) == {}
