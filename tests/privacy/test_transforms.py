"""A device changes values at the cuts: how much, where the backward goes, and what noise depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.job import Job, parse_job
from spliteasy.job.spec import STRICT, PrivacySpec
from spliteasy.privacy.defences.transforms import CutTransforms, clipped
from spliteasy.runtime.randomness import Key
from tests.simulation import toy

KEY, OTHER = Key(bytes(32)), Key(bytes(range(32)))


def transforms(key: Key = KEY, **settings: Any) -> CutTransforms:
    job = toy.job(toy.Variant())
    return CutTransforms(PrivacySpec.model_validate(settings), key, head=job.head, tail=job.tail)


def rows(*, seed: int = 0) -> Tensor:
    """Five rows, one of zeros, of norms from 0 to 40."""
    made = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    return made * torch.tensor([0.0, 0.01, 1.0, 2.0, 10.0])[:, None]


def sent(value: Tensor, step: int = 1, key: Key = KEY, purpose: Any = "activations") -> Tensor:
    noisy = transforms(key, clip_activations=1.0, noise_activations=0.5)
    (result,) = noisy.activations((value,), purpose=purpose, step=step)
    assert isinstance(result, Tensor)
    return result


def test_each_sample_is_clipped_to_the_norm_and_short_ones_stay() -> None:
    value = rows()
    cut = clipped(value, 3.0)
    assert torch.equal(cut[:2], value[:2])
    assert cut.norm(dim=1).max() <= 3.0 * (1 + 1e-6)
    assert torch.allclose(cut[4] / cut[4].norm(), value[4] / value[4].norm())


def test_a_backward_passes_through_the_clipping() -> None:
    value = rows().double().requires_grad_()
    clipped(value, 3.0)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None
    moved = torch.zeros_like(value)
    moved[4, 1] = 1e-6
    with torch.no_grad():
        slope = (clipped(value + moved, 3.0) - clipped(value - moved, 3.0))[:, 0].sum() / 2e-6
    assert float(value.grad[4, 1]) == pytest.approx(float(slope), rel=1e-4)
    assert value.grad[0].isfinite().all()


def test_noise_repeats_with_the_same_tensor_and_with_nothing_else() -> None:
    value, near = rows(), rows()
    near[3, 3] = torch.nextafter(near[3, 3], torch.tensor(9.0))
    first = sent(value) - clipped(value, 1.0)
    assert torch.equal(sent(value.clone()), sent(value))
    others = [
        sent(near) - clipped(near, 1.0),
        sent(value, step=2) - clipped(value, 1.0),
        sent(value, key=OTHER) - clipped(value, 1.0),
        sent(value, purpose="evaluation") - clipped(value, 1.0),
        sent(value, purpose="prediction") - clipped(value, 1.0),
    ]
    for index, other in enumerate(others):
        for before in (first, *others[:index]):
            assert float((other - before).abs().mean()) > 0.2


def test_noise_has_the_size_that_the_job_says() -> None:
    value = torch.zeros(200, 100)
    noise = sent(value)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)


def gradient_of(setting: object, value: Tensor, step: int = 1) -> Tensor:
    (result, absent) = transforms(gradient_noise=setting).gradients((value, None), step=step)
    assert absent is None
    assert isinstance(result, Tensor)
    return result


def test_max_norm_gives_every_sample_the_expected_square_of_the_largest_along_its_own_direction() -> None:
    value = rows()
    squares = torch.stack([gradient_of("max_norm", value, step).square().sum(1) for step in range(800)])
    largest = float(value.square().sum(1).max())
    assert squares.mean(0)[1:].tolist() == pytest.approx([largest] * 4, rel=0.25)
    assert torch.equal(gradient_of("max_norm", value)[0], value[0])
    noisy = gradient_of("max_norm", value)
    for row in range(1, 5):
        cosine = torch.nn.functional.cosine_similarity(noisy[row], value[row], dim=0)
        assert abs(float(cosine)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(noisy[4], value[4])


def test_a_number_adds_noise_in_every_direction_beside_the_largest_sample() -> None:
    value = rows()
    noise = torch.stack([gradient_of(0.5, value, step) - value for step in range(300)])
    assert float(noise.square().sum(2).mean()) == pytest.approx(
        0.25 * float(value[4].square().sum()), rel=0.05
    )


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    value, plain = rows(), transforms()
    assert plain.activations((value, 3), purpose="activations", step=1)[0] is value
    assert plain.gradients((value,), step=1)[0] is value


@pytest.mark.parametrize(
    ("privacy", "says"),
    [
        ({"noise_activations": 0.1}, "set that too"),
        ({"gradient_noise": "min_norm"}, "gradient_noise"),
        ({"gradient_noise": 0.0}, "gradient_noise"),
        ({"clip_activations": 0.0}, "clip_activations"),
        ({"label_dp": 0.0}, "label_dp"),
        ({"preset": "lax"}, "preset"),
    ],
)
def test_settings_that_mean_nothing_are_refused(privacy: dict[str, Any], says: str) -> None:
    spec = toy.job(toy.Variant()).spec.model_dump()
    with pytest.raises(JobError, match=says):
        parse_job({**spec, "privacy": privacy})


def test_a_preset_fills_in_what_the_file_leaves_out() -> None:
    strict = PrivacySpec.model_validate({"preset": "strict"})
    assert strict.model_dump() | STRICT == strict.model_dump()
    own = PrivacySpec.model_validate({"preset": "strict", "peer_labels": False, "label_dp": 4.0})
    assert (own.peer_labels, own.label_dp) == (False, 4.0)
    assert PrivacySpec.model_validate_json(own.model_dump_json()) == own


def test_a_job_with_one_cut_sends_no_gradients_to_make_noise_on() -> None:
    spec = toy.job(toy.Variant(single=True)).spec
    noisy = spec.model_copy(update={"privacy": PrivacySpec(gradient_noise="max_norm")})
    with pytest.raises(JobError, match="name two cuts"):
        Job.create(noisy)


def test_an_older_version_is_told_that_it_can_not_load_the_job() -> None:
    assert "defences" in toy.job(toy.Variant(privacy=(("label_dp", 1.0),))).needs()
    assert "defences" not in toy.job(toy.Variant()).needs()
