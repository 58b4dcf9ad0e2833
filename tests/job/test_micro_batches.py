"""A batch is split by its size alone, evenly, without an empty part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spliteasy.job.micro_batches import MAX_MICRO_BATCHES, micro_sizes, share_of, split_batch


@given(st.integers(1, 5000), st.integers(1, MAX_MICRO_BATCHES))
def test_the_parts_are_even_and_whole(samples: int, micro_batches: int) -> None:
    sizes = micro_sizes(samples, micro_batches)
    assert sum(sizes) == samples
    assert len(sizes) == min(samples, micro_batches)
    assert sorted(sizes, reverse=True) == list(sizes)
    assert sizes[0] - sizes[-1] <= 1
    assert min(sizes) > 0
    assert sum(share_of(size, samples) for size in sizes) == pytest.approx(1)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 16])
def test_the_rows_stay_in_order(micro_batches: int) -> None:
    tensors = (torch.randn(7, 3), torch.arange(7))
    parts = split_batch(tensors, micro_batches)
    for column, whole in zip(zip(*parts, strict=True), tensors, strict=True):
        assert torch.equal(torch.cat(column), whole)
        assert all(part.data_ptr() % 64 == 0 for part in column), "kernels go by alignment"


def test_a_batch_in_one_part_is_not_copied() -> None:
    inputs = torch.randn(4, 2)
    assert split_batch([inputs], 1)[0][0] is inputs
    assert share_of(4, 4) == 1
