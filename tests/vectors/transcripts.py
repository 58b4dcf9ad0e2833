"""Transcripts of the device's machine: events in, actions out, of simulated lives and of scripted ones.

An agent in another language replays them: it makes a machine of the plan and of the steps that are held,
hands it each event, and has to give the same actions and to be in the same state. `ids` are the ids that the
machine draws for its requests on the way. Tensors are numbers of the table `tensors`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.machine import DeviceSession
from device_agent.session.plan import SessionPlan
from spliteasy.codecs.packer import Packed
from spliteasy.errors import SplitEasyError
from tests.simulation.run import play
from tests.vectors.draws import bits
from tests.vectors.scripts import SCRIPTS

SEEDS = (1, 3, 6, 8, 11)
"""Seeds of the simulation: one cut and two, micro-batches, codecs that hold something back, and choices of a
codec."""


class Ids:
    """Stands for the module `secrets` of the messages: it counts, and remembers what it gave."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self._next = 0

    def token_hex(self, nbytes: int) -> str:
        self._next += 1
        self.given.append(f"{self._next:0{2 * nbytes}x}")
        return self.given[-1]


class Recorder:
    """Writes down what every machine that is made while it is entered is told, and what it says."""

    def __init__(self) -> None:
        self.tensors: list[dict[str, Any]] = []
        self.lives: list[dict[str, Any]] = []
        self.ids = Ids()
        self._numbers: dict[str, int] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        made, start, handle = DeviceSession.__init__, DeviceSession.start, DeviceSession.handle
        logs: dict[int, dict[str, Any]] = {}

        def new_init(session: DeviceSession, plan: SessionPlan, *, held: tuple[int, ...]) -> None:
            made(session, plan, held=held)
            logs[id(session)] = log = {"plan": self.told(plan), "held": list(held), "steps": []}
            session._log = log  # type: ignore[attr-defined]
            self.lives.append(log)

        def new_start(session: DeviceSession) -> list[e.Action]:
            actions = start(session)
            session._log["start"] = [self.told(each) for each in actions]  # type: ignore[attr-defined]
            return actions

        def new_handle(session: DeviceSession, event: e.Event) -> list[e.Action]:
            told, before = self.told(event), len(self.ids.given)
            actions = handle(session, event)
            step = {"event": told, "ids": self.ids.given[before:], "actions": [self.told(a) for a in actions]}
            session._log["steps"].append({**step, "state": session.state.name})  # type: ignore[attr-defined]
            return actions

        with ExitStack() as patches:
            for name, new in (("__init__", new_init), ("start", new_start), ("handle", new_handle)):
                patches.enter_context(mock.patch.object(DeviceSession, name, new))
            patches.enter_context(mock.patch.object(m, "secrets", self.ids))
            yield

    def told(self, value: Any) -> Any:
        """The value as JSON has it."""
        if isinstance(value, Tensor):
            return {"tensor": self._number(value)}
        if isinstance(value, m.Message):
            return {**m.to_header(value), "values": [self.told(each) for each in value.values]}
        if isinstance(value, m.Record):
            return value.model_dump(mode="json", exclude_none=True)
        if isinstance(value, Packed):
            packing = [{"parts": parts, "meta": dict(meta)} for parts, meta in value.packing]
            return {**self._fields(value), "packing": packing}
        if isinstance(value, SplitEasyError):
            return {"error": type(value).__name__, "message": value.message}
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, Mapping):
            return {name: self.told(each) for name, each in value.items()}
        if isinstance(value, (tuple, list)):
            return [self.told(each) for each in value]
        if dataclasses.is_dataclass(value):
            named = {} if isinstance(value, SessionPlan) else {"type": type(value).__name__}
            return {**named, **self._fields(value)}
        return value

    def _fields(self, value: Any) -> dict[str, Any]:
        return {field.name: self.told(getattr(value, field.name)) for field in dataclasses.fields(value)}

    def _number(self, tensor: Tensor) -> int:
        found = {**bits(tensor), "strides": list(tensor.stride())}
        key = json.dumps(found)
        if key not in self._numbers:
            self._numbers[key] = len(self.tensors)
            self.tensors.append(found)
        return self._numbers[key]


def transcripts() -> dict[str, Any]:
    """Lives out of the simulation, and those of `SCRIPTS`."""
    recorder = Recorder()
    with recorder.recording():
        for seed in SEEDS:
            summary = play(seed)
            assert not summary.violations, summary
        for script in SCRIPTS:
            script()
    return {"tensors": recorder.tensors, "lives": recorder.lives}


def as_text(made: Mapping[str, Any]) -> str:
    """One life a line: thousands of events with an indent would be mostly blanks."""
    lives = ",\n".join(json.dumps(life, separators=(",", ":")) for life in made["lives"])
    tensors = json.dumps(made["tensors"], separators=(",", ":"))
    return f'{{"tensors":{tensors},\n"lives":[\n{lives}\n]}}\n'


# Replaying -------------------------------------------------------------------------------------------


def differing(book: Mapping[str, Any]) -> Iterator[str]:
    """The places where the machine of today does something else than the transcripts say."""
    tensors = [_tensor(told) for told in book["tensors"]]
    for number, life in enumerate(book["lives"]):
        yield from _differing_life(f"life {number}", life, tensors)


def _differing_life(where: str, life: Mapping[str, Any], tensors: Sequence[Tensor]) -> Iterator[str]:
    recorder, ids = Recorder(), iter(id for step in life["steps"] for id in step["ids"])
    recorder.tensors = [{**bits(each), "strides": list(each.stride())} for each in tensors]
    recorder._numbers = {json.dumps(told): number for number, told in enumerate(recorder.tensors)}
    with mock.patch.object(m, "secrets", mock.Mock(token_hex=lambda _: next(ids))):
        session = DeviceSession(SessionPlan(**life["plan"]), held=tuple(life["held"]))
        if [recorder.told(each) for each in session.start()] != life["start"]:
            yield f"{where}: start"
        for at, step in enumerate(life["steps"]):
            actions = session.handle(_event(step["event"], tensors))
            if [json.loads(json.dumps(recorder.told(each))) for each in actions] != step["actions"]:
                yield f"{where}, step {at}: {step['event']['type']}"
                return
            if session.state.name != step["state"]:
                yield f"{where}, step {at}: state {session.state.name}"
                return


def _tensor(told: Mapping[str, Any]) -> Tensor:
    flat = torch.frombuffer(
        bytearray.fromhex(told["bytes"]) or bytearray(8), dtype=getattr(torch, told["dtype"])
    )
    contiguous = flat[: torch.Size(told["shape"]).numel()].reshape(told["shape"])
    return torch.empty_strided(told["shape"], told["strides"], dtype=contiguous.dtype).copy_(contiguous)


def _event(told: Mapping[str, Any], tensors: Sequence[Tensor]) -> e.Event:
    kind = getattr(e, told["type"])
    fields = {name: _value(name, each, tensors) for name, each in told.items() if name != "type"}
    made: e.Event = kind(**fields)
    return made


def _value(name: str, told: Any, tensors: Sequence[Tensor]) -> Any:
    if name == "message":
        values = tuple(_one(each, tensors) for each in told["values"])
        return m.from_header({key: each for key, each in told.items() if key != "values"}, values)
    if name == "attempt":
        return m.AttemptRef(**told)
    if name == "timer":
        return e.Timer[told]
    if name in ("values", "gradients"):
        packing = tuple((each["parts"], each["meta"]) for each in told["packing"])
        return Packed(
            tuple(_one(each, tensors) for each in told["values"]), told["codec"], packing, told["reply_codec"]
        )
    if name == "noise" and told is not None:
        return e.BodyNoise(**told)
    if name == "ends":
        return {key: _one(each, tensors) for key, each in told.items()}
    if isinstance(told, list):
        return tuple(_one(each, tensors) for each in told)
    return told


def _one(told: Any, tensors: Sequence[Tensor]) -> Any:
    return tensors[told["tensor"]] if isinstance(told, dict) else told
