"""Models of installed libraries train in segments as they train whole."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.zoo_models import zoo
from benchmarks.harness.zoo_pictures import is_installed, picture_zoo
from benchmarks.zoo import try_model

pytestmark = pytest.mark.filterwarnings("ignore")
"""What the libraries warn of is theirs."""

QUICK = ("GPT-2, sdpa", "Llama with LoRA", "T5, eager")


@pytest.fixture(autouse=True)
def plain_attention() -> None:
    torch.backends.mha.set_fastpath_enabled(False)


@pytest.mark.parametrize("name", QUICK)
def test_some_are_exact(name: str) -> None:
    outcome = try_model(name, zoo()[name], cuts=1)
    assert outcome.fine, outcome


@pytest.mark.long
@pytest.mark.parametrize("name", picture_zoo())
def test_each_family_of_picture_models_is_exact(name: str) -> None:
    if not is_installed(name):
        pytest.skip("needs timm and torchvision")
    outcome = try_model(name, picture_zoo()[name], cuts=2)
    assert outcome.fine or outcome.regrouped, outcome
    assert not outcome.differing


@pytest.mark.long
@pytest.mark.parametrize("name", zoo())
def test_each_is_exact(name: str) -> None:
    outcome = try_model(name, zoo()[name])
    assert outcome.fine, outcome
