"""Runs an agent or a worker with a stopwatch at the seams.

    python -m benchmarks.harness.stopwatch FILE MODULE ARGUMENTS…

At its end the process writes to FILE: moments of each step by a clock that all processes of the machine
share, and the processor time of what happens between the moments.
"""

from __future__ import annotations

import atexit
import json
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import broker.transport.sender
from broker.protocol import assembler, messages
from device_agent.link.link import Link
from device_agent.session import events as e
from device_agent.session.machine import DeviceSession
from device_agent.training import effects
from device_agent.training.trainer import DeviceTrainer
from server_worker.admission.intake import Intake
from server_worker.engine.body_trainer import BodyTrainer
from server_worker.replica.kept_state import MAGIC as STATE
from server_worker.store.redis.store import RedisStore
from server_worker.worker import Worker

moments: list[tuple[int, str, float]] = []
"""(step, what, seconds)."""
spent: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
"""The calls and processor seconds of the calling thread, by part."""

_KINDS = (messages.Forward, messages.Forwarded, messages.Backward, messages.Gradient)


def mark(step: int, what: str) -> None:
    moments.append((step, what, time.perf_counter()))


def around(owner: Any, name: str, before: Callable[..., None] | None, after: Callable[..., None]) -> None:
    """Call `before(*arguments)` and `after(result, *arguments)` around a method, in its own thread."""
    method = getattr(owner, name)

    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before(*arguments)
        result = method(*arguments, **named)
        after(result, *arguments)
        return result

    setattr(owner, name, call)


def around_async(owner: Any, name: str, what: Callable[..., tuple[int, str]]) -> None:
    """Mark the beginning and the end of a coroutine method."""
    method = getattr(owner, name)

    @wraps(method)
    async def call(*arguments: Any, **named: Any) -> Any:
        step, label = what(*arguments, **named)
        mark(step, f"{label} begins")
        try:
            return await method(*arguments, **named)
        finally:
            mark(step, f"{label} ends")

    setattr(owner, name, call)


def costing(owner: Any, name: str, part: str) -> None:
    """Count the processor time of a function."""
    method = getattr(owner, name)

    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*arguments, **named)
        finally:
            spent[part][0] += 1
            spent[part][1] += time.thread_time() - began

    setattr(owner, name, call)


def costing_iterator(owner: Any, name: str, part: str) -> None:
    """Count the processor time of a generator's steps."""
    method = getattr(owner, name)

    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Iterator[Any]:
        iterator = method(*arguments, **named)
        while True:
            began = time.thread_time()
            item = next(iterator, None)
            spent[part][0] += 1
            spent[part][1] += time.thread_time() - began
            if item is None:
                return
            yield item

    setattr(owner, name, call)


def install() -> None:
    """Put the stopwatches on."""
    names = {e.RunHead: "head", e.RunTail: "tail", e.Apply: "apply", e.Save: "checkpoint"}

    def label(action: Any, trainer: DeviceTrainer) -> tuple[int, str]:
        step = action.step if isinstance(action, e.RunHead) else trainer.step + 1
        return step, names.get(type(action), "other")

    current: list[tuple[int, str]] = [(0, "")]

    def begins(action: Any, trainer: DeviceTrainer, *_: Any) -> None:
        current[0] = label(action, trainer)
        mark(current[0][0], f"{current[0][1]} begins")

    around(effects, "perform", begins, lambda *_: mark(current[0][0], f"{current[0][1]} ends"))
    around(Link, "send", _sending, _nothing)
    around(DeviceSession, "handle", lambda _, event: _received(getattr(event, "message", None)), _nothing)
    around(Intake, "take", None, lambda taken, *_: _received(getattr(taken, "request", None)))
    around(
        BodyTrainer,
        "forward",
        lambda body, _: mark(body.step + 1, "body forward begins"),
        lambda _, body, __: mark(body.step + 1, "body forward ends"),
    )
    around(BodyTrainer, "backward", lambda body, _: mark(body.step + 1, "body backward begins"), _nothing)
    around(BodyTrainer, "take_step", None, lambda _, body: mark(body.step, "body backward ends"))
    around_async(RedisStore, "put_request", lambda *_, step, body, **__: (step, f"log {_kind(body)}"))
    around_async(RedisStore, "commit", lambda *_, step, **__: (step, "commit"))
    around(Worker, "send", lambda worker, reply_to, reply, *_: _sending(worker, reply), _nothing)
    costing_iterator(broker.transport.sender, "to_frames", "cut into frames")
    costing(broker.transport.sender, "encode_parts", "encode")
    costing(assembler.Assembler, "add", "put together")


def _kind(body: Any) -> str:
    """`forward` or `backward`: which request was written, without its tensors. A step's state may stand in
    their place."""
    if bytes(memoryview(body)[: len(STATE)]) == STATE:
        return "state"
    length = int.from_bytes(body[8:12], "little")
    kind: str = json.loads(bytes(body[12 : 12 + length]))["m"]["kind"]
    return kind.lower()


def _nothing(*_: Any) -> None:
    """Do nothing after a call that needs no second look."""


def _sending(_: Any, message: Any, *__: Any) -> None:
    if isinstance(message, _KINDS):
        mark(message.step, f"{message.kind} sent")


def _received(message: Any) -> None:
    if isinstance(message, _KINDS):
        mark(message.step, f"{message.kind} received")


def main() -> None:
    file, module, *arguments = sys.argv[1:]
    install()
    atexit.register(lambda: Path(file).write_text(json.dumps({"moments": moments, "spent": spent})))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
