"""Split training is the same training: to the last bit, for many kinds of jobs; and a difference is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spliteasy.training import reference
from spliteasy.training.reference import difference
from tests.cli.conftest import ROOT, Project, Ran

SECRET = "03" * 32
LAST_SAME = "max_abs_diff=0"
NOISY = "[privacy]\nclip_activations = 1.0\nnoise_activations = 0.2"


@pytest.mark.parametrize(
    "job",
    [
        pytest.param({}, id="sgd"),
        pytest.param(
            {"more": "[clip]\nmax_norm = 0.05", "optimizer": 'name = "adam"\nlr = 0.01'}, id="clipped-adam"
        ),
        pytest.param(
            {
                "optimizer": 'name = "adamw"\nlr = 0.01\n[[optimizer.groups]]\npattern = "*.bias"\n'
                "weight_decay = 0.0\n[[optimizer.groups]]\n"
                'pattern = "stem.*"\nfrozen = true'
            },
            id="frozen-head-adamw",
        ),
        pytest.param(
            {
                "optimizer": 'name = "sgd"\nlr = 0.1\nmomentum = 0.9\nnesterov = true',
                "more": '[schedule]\nname = "cosine"\nsteps = 20\nwarmup_steps = 3',
            },
            id="cosine-nesterov",
        ),
        pytest.param({"extra": "nn.Dropout(0.3),"}, id="dropout"),
        pytest.param({"cuts": '["stem"]', "top": "share_labels = true"}, id="single-split"),
        pytest.param(
            {"cuts": '["stem"]', "top": "share_labels = true", "extra": "nn.Dropout(0.3),"},
            id="single-split-dropout",
        ),
        pytest.param({"top": "micro_batches = 2", "more": "[clip]\nmax_norm = 0.05"}, id="2-micro-batches"),
        pytest.param({"top": "micro_batches = 3", "extra": "nn.Dropout(0.3),"}, id="3-micro-batches"),
        pytest.param(
            {"cuts": '["stem"]', "top": "share_labels = true\nmicro_batches = 4"}, id="4-micro-batches-single"
        ),
        pytest.param({"loss": 'function = "{module}:squared"'}, id="own-loss"),
        pytest.param({"extra": "nn.Dropout(0.3),", "cuts": '["stem", "middle.2"]'}, id="cut-after-dropout"),
        pytest.param(
            {"extra": "nn.Dropout(0.3), Twice(),", "cuts": '["stem", "middle.3.drop#1"]'}, id="first-call"
        ),
        pytest.param({"extra": "Twice(),", "cuts": '["stem", "middle.2.drop"]'}, id="last-call"),
        pytest.param(
            {"more": f'{NOISY}\ngradient_noise = "max_norm"\nlabel_dp = 1.0', "extra": "nn.Dropout(0.3),"},
            id="noisy-max-norm-label-dp",
        ),
        pytest.param(
            {"more": f"{NOISY}\ngradient_noise = 0.5", "top": "micro_batches = 3"}, id="noisy-parts"
        ),
        pytest.param({"more": '[privacy]\npreset = "strict"'}, id="strict"),
        pytest.param(
            {"more": f"{NOISY}\nlabel_dp = 2.0", "cuts": '["stem"]', "top": "share_labels = true"},
            id="noisy-single-split",
        ),
        pytest.param({"extra": "Again(),", "cuts": '["stem", "middle.2.inner.0"]'}, id="computed-again"),
        pytest.param(
            {
                "top": "accumulate = 4",
                "optimizer": 'name = "rmsprop"\nlr = 0.01\nema = 0.9',
                "more": '[clip]\nmax_norm = 0.05\n[schedule]\nname = "cosine"\nsteps = 3',
            },
            id="accumulated-rmsprop-ema",
        ),
        pytest.param(
            {
                "top": "accumulate = 5\nmicro_batches = 2",
                "optimizer": 'name = "adagrad"\nlr = 0.1',
                "more": "[privacy]\nnopeek = 0.5",
            },
            id="part-of-a-window-adagrad-nopeek",
        ),
        pytest.param(
            {
                "top": "accumulate = 3\nshare_labels = true",
                "cuts": '["stem"]',
                "optimizer": 'name = "lion"\nlr = 0.01\nweight_decay = 0.1\nema = 0.5',
            },
            id="accumulated-lion-single-split",
        ),
    ],
)
def test_parity(
    job: dict[str, str], spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(**job)
    text = project.job_file.read_text()
    project.job_file.write_text(text.replace("{module}", project.module))
    ran = spliteasy("parity", project.job_file, "--steps", 12, "--devices", 2)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME
    assert "model/middle.0.weight" in ran.out
    assert "phone-2, step 12" in ran.out


@pytest.mark.parametrize(
    ("module", "evaluation", "optimizer"),
    [
        ("best_by_loss", "keep_best = true", 'name = "sgd"\nlr = 0.6\nmomentum = 0.9'),
        (
            "best_by_f1",
            'keep_best = true\nmetrics = ["f1"]\npatience = 2',
            'name = "sgd"\nlr = 0.9\nema = 0.5',
        ),
    ],
)
def test_parity_at_the_best_evaluation(
    module: str,
    evaluation: str,
    optimizer: str,
    spliteasy: Callable[..., Ran],
    new_project: Callable[..., Project],
) -> None:
    """Plain PyTorch finds the best by its own evaluations, and its state there has the same bits.

    With this secret and a job that is the same in every run, neither device is best at its end.
    """
    project = new_project(optimizer=optimizer, epochs=6)
    (project.folder / f"{project.module}.py").rename(project.folder / f"{module}.py")
    text = project.job_file.read_text().replace(project.module, module)
    project.job_file.write_text(text.replace("every_epochs = 2", f"every_epochs = 1\n{evaluation}"))
    ran = spliteasy("parity", project.job_file, "--steps", 30, "--devices", 2, "--secret", SECRET)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME
    assert "step 30" not in ran.out


@pytest.mark.rabbitmq
@pytest.mark.redis
def test_parity_in_micro_batches_on_rabbitmq_and_redis(
    rabbitmq_url: str, redis_url: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(top="micro_batches = 3", extra="nn.Dropout(0.3),")
    there = ("--broker", rabbitmq_url, "--store", redis_url, "--workers", 2)
    ran = spliteasy("parity", project.job_file, "--steps", 8, "--devices", 2, *there)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME


def test_parity_of_the_digits(spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy("parity", ROOT / "examples/digits/job.toml", "--steps", 30)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME


def test_a_difference_is_seen(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = reference.PlainTraining.step

    def careless(self: reference.PlainTraining, *batch: Any, **about: Any) -> float:
        loss = taken(self, *batch, **about)
        with torch.no_grad():
            weight = self._model.get_parameter("middle.0.weight")
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(float("inf")))
        return loss

    monkeypatch.setattr(reference.PlainTraining, "step", careless)
    ran = spliteasy("parity", new_project().job_file, "--steps", 3)
    assert ran.code == 1
    last = ran.out.splitlines()[-1]
    assert last.startswith("max_abs_diff=")
    assert 0 < float(last.partition("=")[2]) < 1e-3


LOSES_A_GRADIENT = """

made = 0


def build_other():
    global made
    made += 1
    net = Net()
    if made > 1:
        net.middle.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 0.5,))
    return net
"""


@pytest.mark.parametrize("extra", ["", "nn.Dropout(0.3),"])
def test_a_gradient_that_the_trace_lost_is_seen(
    extra: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    """The factory makes the model that is exported, and then one with a hook that no trace keeps."""
    project = new_project(extra=extra)
    source = project.folder / f"{project.module}.py"
    source.write_text(source.read_text() + LOSES_A_GRADIENT)
    project.job_file.write_text(project.job_file.read_text().replace(":build", ":build_other"))
    ran = spliteasy("parity", project.job_file, "--steps", 2)
    assert ran.code == 1
    assert float(ran.out.splitlines()[-1].partition("=")[2]) > 1e-4


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([1.0, float("nan")], [1.0, float("nan")], 0.0),
        ([1.0, float("nan")], [1.0, 2.0], float("inf")),
        ([float("inf")], [float("inf")], 0.0),
        ([float("inf")], [1.0], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
        ([], [], 0.0),
        ([3], [5], 2.0),
    ],
)
def test_difference(ours: list[float], theirs: list[float], expected: float) -> None:
    assert difference(torch.tensor(ours), torch.tensor(theirs)) == expected


def test_a_difference_of_dtype_is_one() -> None:
    assert difference(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) == float("inf")
