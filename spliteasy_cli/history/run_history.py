"""The history of a run: what agents tell, as JSON lines and, where asked for, as TensorBoard events.

DIR/<device>.jsonl has one object a line, each with `time` (Unix seconds) and `event`:

    {"time": …, "event": "step", "step": 7, "epoch": 1, "loss": 0.31, "samples": 32, "seconds": 0.02,
     "bytes_up": …, "bytes_down": …}                   bytes are totals of the run
    {"time": …, "event": "evaluation", "step": 90, "loss": 0.2, "accuracy": 0.94, "samples": 200}
    {"time": …, "event": "state", "text": "resumed after step 7"}

A run that goes on appends: after a resume that went back, steps appear again, and the last one counts.
A line is written at once, so that a killed run keeps all. A loss that is not a number is null.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import orjson
import structlog

from device_agent.observations import Evaluated, Observation, Observe, RoundEnded, StateChanged, StepTaken
from spliteasy.errors import UserError
from spliteasy_cli.history.report import as_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = structlog.get_logger(__name__)
TENSORBOARD_FOLDER = "tensorboard"


class Kept(Protocol):
    """A history while it is entered."""

    def __enter__(self) -> Kept: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, observation: Observation) -> None: ...


class History:
    """Writes observations while it is entered; entering raises UserError where it can't write.

    A disk that fails later ends the history, not the training.
    """

    def __init__(
        self, folder: Path, *, tensorboard: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._tensorboard = tensorboard
        self._clock = clock
        self._files: dict[str, BinaryIO] = {}
        self._boards: dict[str, SummaryWriter] = {}
        self._board: type[SummaryWriter] | None = None
        self._broken = False

    def __enter__(self) -> History:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"no history in {self._folder}: {error.strerror}", hint="--history DIR") from None
        self._board = _tensorboard() if self._tensorboard else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        for board in self._boards.values():
            board.close()
        self._files.clear()
        self._boards.clear()

    def __call__(self, observation: Observation) -> None:
        """Write an observation."""
        if self._broken:
            return
        try:
            self._write(observation)
        except OSError as error:
            self._broken = True
            log.warning("the history ends here", folder=str(self._folder), error=str(error))

    def _write(self, observation: Observation) -> None:
        now, device = self._clock(), observation.device
        if device not in self._files:
            self._files[device] = (self._folder / f"{device}.jsonl").open("ab", buffering=0)
            if self._board is not None:
                self._boards[device] = self._board(str(self._folder / TENSORBOARD_FOLDER / device))
        record = {"time": round(now, 3), **as_record(observation)}
        self._files[device].write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        board = self._boards.get(device)
        if board is not None and "step" in record:
            for name, value in _scalars(observation).items():
                board.add_scalar(name, value, record["step"], walltime=now)


def as_record(observation: Observation) -> dict[str, Any]:
    """Return an observation as the file has it, but for the time."""
    match observation:
        case StepTaken() as taken:
            return {
                "event": "step",
                "step": taken.step,
                "epoch": taken.epoch,
                "loss": taken.loss,
                "samples": taken.samples,
                "seconds": round(taken.seconds, 6),
                "bytes_up": taken.bytes_up,
                "bytes_down": taken.bytes_down,
            }
        case Evaluated() as done:
            return {
                "event": "evaluation",
                "step": done.step,
                "loss": as_json(done.loss),
                "accuracy": as_json(done.accuracy),
                "samples": done.samples,
                **({"metrics": {k: as_json(v) for k, v in done.metrics.items()}} if done.metrics else {}),
            }
        case RoundEnded() as ended:
            return {"event": "round", "round": ended.round, "step": ended.step}
        case StateChanged(text=text):
            return {"event": "state", "text": text}


def _scalars(observation: Observation) -> dict[str, float]:
    match observation:
        case StepTaken() as taken:
            found = {
                "train/loss": taken.loss,
                "train/seconds": taken.seconds,
                "link/bytes_up": taken.bytes_up,
            }
        case Evaluated(loss=loss, accuracy=accuracy, metrics=metrics):
            found = {"test/loss": loss, "test/accuracy": accuracy}
            found |= {f"test/{name}": value for name, value in metrics.items()}
        case _:
            found = {}
    return {name: value for name, value in found.items() if value is not None}


def tell_all(*observers: Observe) -> Observe:
    """One observer that tells all of these, in order."""

    def observe(observation: Observation) -> None:
        for observer in observers:
            observer(observation)

    return observe


def _tensorboard() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard", hint="pip install 'spliteasy[tensorboard]'"
        ) from None
    return SummaryWriter
