"""Texts with lengths of their own beside texts of one, in bytes and time: `python -m benchmarks.lengths`.

The language model of `examples/text` trains on the texts of a phone, with each micro-batch padded to its
longest text, and by turns with all texts padded to the longest that there may be. Device and worker compute
in this process, one after the other; bytes are those of the messages that would travel, before frames.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.harness.report import Table, save, show_about
from broker import encode
from broker.protocol import messages as m
from device_agent.link.speed import LinkSpeed
from device_agent.training.codec_policy import BySpeed, StepChoices
from device_agent.training.data import BatchOrder
from device_agent.training.ends import draw_ends
from device_agent.training.trainer import DeviceTrainer
from examples.text.data import device_data
from examples.text.model import IGNORED, LENGTH
from server_worker.replica.direct_body import DirectBody
from spliteasy.job import Job, load_job_file
from spliteasy.runtime.randomness import Key

ROOT = Path(__file__).parents[1]
JOB = ROOT / "examples/text/job.toml"
OWN, ONE = "own length", "one length"
PHONE, ATTEMPT = "phone-1", m.AttemptRef(number=1, nonce="0" * 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number of steps with texts of one kind."""

    texts: str
    micro_batches: int
    steps: int
    bytes: int
    """Bytes of all steps, both ways."""
    seconds: float
    """The time that both sides compute."""


class OneLength(Dataset[Any]):
    """Texts that are all padded to the longest that there may be."""

    def __init__(self, texts: Sequence[dict[str, Tensor]]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        padded = {}
        for name, tensor in self._texts[index].items():
            padded[name] = torch.full((LENGTH,), IGNORED if name == "following" else 0)
            padded[name][: len(tensor)] = tensor
        return padded


class Training:
    """Both sides of the training, at the step that comes next."""

    def __init__(self, texts: str, micro_batches: int) -> None:
        spec = load_job_file(JOB)
        model = spec.model if texts == OWN else spec.model.model_copy(update={"max_length": None, "pad": {}})
        changes = {"model": model, "micro_batches": micro_batches}
        job = Job.create(spec.model_copy(update=changes), ROOT)
        train: Any = device_data(PHONE)[0]
        key = Key(bytes(32))
        batches = BatchOrder(
            train if texts == OWN else OneLength(train),
            job.spec,
            job.signature,
            device=PHONE,
            key=key,
            labels=key,
        )
        choices = StepChoices(job.spec.link, BySpeed(job.spec.link, LinkSpeed()), ahead=1)
        self.trainer = DeviceTrainer.create(
            job, batches, None, device=PHONE, key=key, ends=draw_ends(job, key), choices=choices
        )
        self.body = DirectBody(job, f"{job.name}.{PHONE}")

    def step(self) -> int:
        """Take a step on both sides; the bytes that would travel."""
        trainer, body = self.trainer, self.body
        sent, micro, result, step = 0, 0, None, trainer.step + 1
        while result is None:
            head = trainer.run_head(step, micro)
            forward = m.Forward(
                session=body.session,
                attempt=ATTEMPT,
                step=step,
                micro=micro,
                samples=head.samples,
                length=head.length,
                batch=head.batch,
                **m.carried(head.values),
                oldest_checkpoint=0,
            )
            body.forward(forward)
            outputs = body.outputs(micro)
            gradients = trainer.run_tail(outputs, micro)
            backward = m.Backward(
                session=body.session,
                attempt=ATTEMPT,
                step=step,
                micro=micro,
                forward=forward.request,
                **m.carried(gradients),
            )
            result = body.backward(backward)
            sent += len(encode(forward)) + outputs.nbytes + len(encode(backward))
            if result is None:
                early = body.result(micro)
                sent += early.gradients.nbytes
                trainer.run_head_backward(early.gradients, early.loss)
            micro += 1
        last = result.micros[-1]
        trainer.apply(last.gradients, last.loss)
        return sent + last.gradients.nbytes


def measure(micro_batches: int, steps: int) -> list[Figure]:
    """So many steps of each kind, by turns."""
    trainings = {texts: Training(texts, micro_batches) for texts in (OWN, ONE)}
    bytes_of, seconds = dict.fromkeys(trainings, 0), dict.fromkeys(trainings, 0.0)
    for training in trainings.values():
        training.step()  # the first step also loads and allocates
    for _ in range(steps):
        for texts, training in trainings.items():
            began = time.perf_counter()
            bytes_of[texts] += training.step()
            seconds[texts] += time.perf_counter() - began
    return [
        Figure(
            texts=texts,
            micro_batches=micro_batches,
            steps=steps,
            bytes=bytes_of[texts],
            seconds=seconds[texts],
        )
        for texts in trainings
    ]


def table_of(figures: Sequence[Figure]) -> Table:
    rows = []
    for own, one in zip(figures[::2], figures[1::2], strict=True):
        for each in (own, one):
            rows.append(
                [
                    str(each.micro_batches),
                    each.texts,
                    f"{each.bytes / each.steps / 1e6:.3f}",
                    f"{100 * (each.bytes / one.bytes - 1):+.0f} %",
                    f"{1000 * each.seconds / each.steps:.0f}",
                    f"{100 * (each.seconds / one.seconds - 1):+.0f} %",
                ]
            )
    head = ["micro-batches", "texts of", "MB a step", "bytes", "ms a step, both sides", "time"]
    return Table(f"Texts of 16 to {LENGTH} characters, 16 in a batch", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description=__doc__)
    parser.add_argument("--steps", type=int, default=19, help="of each kind; an epoch has 20")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = show_about()
    figures = [figure for parts in (1, 4, 16) for figure in measure(parts, options.steps)]
    table = table_of(figures)
    table.show()
    save("lengths", [asdict(figure) for figure in figures], [table], began)


if __name__ == "__main__":
    main()
