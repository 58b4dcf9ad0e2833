"""NoPeek: the correlation is what it says, the head gets its gradient, plain PyTorch gives the same bits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from server_worker.store.keys import StoreKeys
from spliteasy.errors import JobError
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.defences.nopeek import distance_correlation, penalty_gradient
from spliteasy.privacy.defences.transforms import CutTransforms, check_nopeek
from spliteasy_cli.support.comparison import compare, prepare
from tests.drawn import key_of
from tests.privacy.conftest import DIGITS, small_job
from tests.simulation import toy


def rows(samples: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed)).double()


def test_correlation_is_one_for_what_is_alike_and_small_for_what_has_nothing_in_common() -> None:
    seen = rows(300, 2, 0)
    assert float(distance_correlation(seen, 3 * seen + 1)) == pytest.approx(1)
    assert float(distance_correlation(seen, seen.square())) > 0.3
    assert float(distance_correlation(seen, rows(300, 2, 1))) < 0.15
    assert float(distance_correlation(seen, torch.ones(300, 2).double())) == 0


def test_the_gradient_is_the_slope_of_the_term() -> None:
    seen, sent = rows(20, 3, 0), rows(20, 4, 1)
    gradient = penalty_gradient(0.7, [seen, torch.zeros(20, dtype=torch.int64)], sent)
    moved = torch.zeros_like(sent)
    moved[4, 2] = 1e-5
    slope = (distance_correlation(seen, sent + moved) - distance_correlation(seen, sent - moved)) / 2e-5
    assert float(gradient[4, 2]) == pytest.approx(0.7 * float(slope), rel=1e-4)


@pytest.mark.parametrize("samples", [1, 5])
def test_samples_that_are_all_alike_give_no_gradient(samples: int) -> None:
    gradient = penalty_gradient(1.0, [torch.ones(samples, 3)], torch.ones(samples, 4))
    assert torch.equal(gradient, torch.zeros(samples, 4))


def test_the_head_gets_the_term_beside_the_gradient_that_came_by_its_share_of_the_batch() -> None:
    job = toy.job(toy.Variant())
    transforms = CutTransforms(PrivacySpec(nopeek=2.0), key_of(), head=job.head, tail=job.tail)
    seen, sent, came = rows(8, 3, 0), rows(8, 4, 1), rows(8, 4, 2)
    (changed, absent) = transforms.returned((seen,), (sent, 3), (came, None), share=0.25)
    assert absent is None
    assert changed is not None
    assert torch.equal(changed, came + penalty_gradient(0.5, [seen], sent))
    assert transforms.returned((seen,), (sent,), (came,), share=0.0)[0] is came


def test_inputs_without_distances_are_refused() -> None:
    with pytest.raises(JobError, match="no such input"):
        check_nopeek(small_job("text", "texts", ["first", "second"], batch=16, epochs=2).head)


def test_split_and_plain_training_are_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    text = DIGITS.read_text().replace("batch_size = 30\n", "batch_size = 30\nmicro_batches = 2\n")
    file.write_text(text + "\n[privacy]\nnopeek = 0.5\nclip_activations = 3.0\n")
    plan = prepare(file, 3, 1, "examples.digits:device_data", tmp_path / "run", bytes(32))
    (found,) = asyncio.run(compare(plan, None, None, StoreKeys(), None, asyncio.Event()))
    assert max(found.differences.values()) == 0
