"""A model of a pipeline in virtual time: devices that train, their links, brokers, workers and a store.

It is a discrete-event model (`simpy`). A device trains in a closed loop: what it waits for is the messages of
its own step. Each part of the pipeline is a station with so many servers, which stands on a machine with so
many cores; a piece of work waits for a server and then for a core, in the order of arrival, and holds both
until it is done. The costs are measured (`benchmarks.capacity`); what is not in the model: lost messages,
replays, the time that an operating system needs to change between processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import simpy

from broker.transport.backoff import full_jitter

Event = simpy.Event
Work = Iterator[Event]
"""A process of simpy: it yields the events that it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The costs of one training step, part by part, in seconds of processor time."""

    device_s: float
    """All that a device does: head, tail, their optimizers, packing and sending."""
    broker_s: float
    store_s: float
    worker_s: float
    """The worker's event loop: it receives, checks, commits and answers."""
    body_s: float
    """The worker's torch thread: forward, backward and step, with its waits for the interpreter."""
    link_s: float = 0.0
    """An emulated link's own processor time: only where one stands beside the rest."""
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def server_s(self) -> float:
        """All but the device's."""
        return self.broker_s + self.store_s + self.worker_s + self.body_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A device's way to the broker: seconds one way, and bytes a second (None: no limit)."""

    latency_s: float
    up_bytes_s: float | None = None
    down_bytes_s: float | None = None

    def up_s(self, nbytes: float) -> float:
        return self.latency_s + (nbytes / self.up_bytes_s if self.up_bytes_s else 0.0)

    def down_s(self, nbytes: float) -> float:
        return self.latency_s + (nbytes / self.down_bytes_s if self.down_bytes_s else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The parts that serve the devices. `cores`: of one machine for all; None: each has its own."""

    devices: int
    workers: int = 1
    broker_cores: int = 2
    cores: int | None = None
    devices_share: int | None = None
    """Devices that compute on so many cores of one machine; None: each has a processor of its own."""


@dataclass(slots=True)
class Station:
    """A part of the pipeline, and how long it has worked."""

    name: str
    environment: simpy.Environment
    servers: simpy.Resource
    cores: simpy.Resource | None
    busy_s: float = 0.0

    def work(self, seconds: float) -> Work:
        """Hold a server and a core for so long."""
        if seconds <= 0:
            return
        with self.servers.request() as server:
            yield server
            if self.cores is None:
                yield self.environment.timeout(seconds)
            else:
                with self.cores.request() as core:
                    yield core
                    yield self.environment.timeout(seconds)
        self.busy_s += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The figures of a run of the model, without its first fifth."""

    steps_s: float
    """Steps a second, of all devices."""
    step_s: float
    """Seconds of a step, the median."""
    slow_step_s: float
    """Seconds of a step, the 95th percentile."""
    used: dict[str, float]
    """The share of the time that each part works; a worker's messages and bodies share its core."""

    @property
    def fullest(self) -> str:
        """The part with the least left."""
        return max(self.used, key=lambda name: self.used[name])


@dataclass
class Pipeline:
    """One run of the model."""

    costs: Costs
    link: Link
    layout: Layout
    round_trip_s: float = 0.0003
    """Between the parts of a cell: from a worker to its broker or store and back."""
    environment: simpy.Environment = field(default_factory=simpy.Environment)
    steps: list[tuple[float, float]] = field(default_factory=list)
    """When each step ended, and how long it took."""

    def run(self, seconds: float, *, seed: int = 0) -> Outcome:
        """Let all devices train for so long, begun at moments of their own."""
        chance, layout = random.Random(seed), self.layout
        shared = self._cores(layout.cores)
        self._broker = self._station("broker", layout.broker_cores, shared)
        self._store = self._station("store", 1, shared)
        self._links = self._station("emulated link", 1, shared)
        of_workers = [shared or self._cores(1) for _ in range(layout.workers)]
        self._loops = [self._station("worker", 1, cores) for cores in of_workers]
        self._bodies = [self._station("body", 1, cores) for cores in of_workers]
        together = layout.devices_share
        crowd = self._station("devices", together, shared) if together else None
        for number in range(layout.devices):
            own = crowd or self._station("devices", 1, None)
            worker = number % layout.workers
            begins = chance.random() * self._alone_s()
            self.environment.process(self._train(own, worker, begins))
        warm_s = seconds / 5
        self.environment.run(until=warm_s)
        before = self._busy()
        self.environment.run(until=seconds)
        after = self._busy()
        left_s = seconds - warm_s
        took = sorted(took for ended, took in self.steps if ended > warm_s)
        return Outcome(
            steps_s=len(took) / left_s,
            step_s=median(took) if took else float("inf"),
            slow_step_s=took[int(len(took) * 0.95)] if took else float("inf"),
            used={name: (after[name] - before[name]) / left_s for name in after},
        )

    def _cores(self, count: int | None) -> simpy.Resource | None:
        return None if count is None else simpy.Resource(self.environment, count)

    def _station(self, name: str, servers: int, cores: simpy.Resource | None) -> Station:
        return Station(name, self.environment, simpy.Resource(self.environment, servers), cores)

    def _alone_s(self) -> float:
        """Roughly a step of one device alone."""
        way = self.link.up_s(self.costs.bytes_up / 2) + self.link.down_s(self.costs.bytes_down / 2)
        return 2 * way + self.costs.server_s + self.costs.device_s

    def _busy(self) -> dict[str, float]:
        """Seconds that each part has worked, a server."""
        return {
            "broker": self._broker.busy_s / self._broker.servers.capacity,
            "store": self._store.busy_s,
            "workers": sum(each.busy_s for each in (*self._loops, *self._bodies)) / len(self._loops),
        }

    def _train(self, own: Station, worker: int, begins_s: float) -> Work:
        yield self.environment.timeout(begins_s)
        while True:
            began = self.environment.now
            yield from self._step(own, worker)
            self.steps.append((self.environment.now, self.environment.now - began))

    def _step(self, own: Station, worker: int) -> Work:
        """A head, a forward, a tail, a backward with its commit, and the device's own step."""
        costs, loop, body = self.costs, self._loops[worker], self._bodies[worker]
        yield from own.work(costs.device_s / 3)
        for part in (1 / 3, 2 / 3):  # a backward pass costs about twice what a forward does
            yield from self._way(self.link.up_s(costs.bytes_up / 2))
            yield from loop.work(costs.worker_s / 4)
            yield from body.work(costs.body_s * part)
            if part > 1 / 2:
                yield self.environment.timeout(self.round_trip_s)
                yield from self._store.work(costs.store_s)
            yield from loop.work(costs.worker_s / 4)
            yield from self._way(self.link.down_s(costs.bytes_down / 2))
            yield from own.work(costs.device_s / 3)

    def _way(self, seconds: float) -> Work:
        """A message over the link and through the broker."""
        yield self.environment.timeout(seconds)
        yield from self._links.work(self.costs.link_s / 4)
        yield from self._broker.work(self.costs.broker_s / 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """Devices that connect again after their broker was away, paced as agents pace themselves."""

    devices: int
    connect_s: float
    """Processor time of the broker for one connection with its channel and reply queue."""
    cores: int
    patience_s: float = 15.0
    """A device gives an attempt up after so long, and the broker has worked for nothing."""

    def run(self, *, away_s: float = 10.0, seed: int = 0) -> tuple[float, int]:
        """Return the seconds from the broker's start until 99 % are back, and the attempts given up."""
        environment, chance = simpy.Environment(), random.Random(seed)
        broker = simpy.Resource(environment, self.cores)
        back: list[float] = []
        given_up = [0]
        for _ in range(self.devices):
            environment.process(self._device(environment, broker, chance, away_s, back, given_up))
        environment.run()
        return sorted(back)[int(len(back) * 0.99) - 1] - away_s, given_up[0]

    def _device(
        self,
        environment: simpy.Environment,
        broker: simpy.Resource,
        chance: random.Random,
        away_s: float,
        back: list[float],
        given_up: list[int],
    ) -> Work:
        for delay_s in full_jitter(rng=chance):
            yield environment.timeout(delay_s)
            if environment.now < away_s:
                continue  # refused at once: nobody listens
            with broker.request() as turn:
                waited: Any = yield turn | environment.timeout(self.patience_s)
                if turn not in waited:
                    given_up[0] += 1
                    continue
                yield environment.timeout(self.connect_s)
            back.append(environment.now)
            return
