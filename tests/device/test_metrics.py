"""The metrics of an agent, over whole trainings with the in-process broker."""

from __future__ import annotations

from pathlib import Path

from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent import metrics
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from spliteasy.observability.prometheus import PrometheusMeter
from spliteasy.runtime.torch_thread import TorchThread
from testing import serving
from tests.drawn import SECRET
from tests.recorded import Recorded
from tests.simulation import toy


async def trained(folder: Path, *, lose_link_after: int | None = None) -> tuple[Agent, Recorded]:
    """A device's whole training of the toy job; its link goes down once, after so many steps."""
    broker, meter = MemoryBroker(), Recorded()
    transports: list[MemoryTransport] = []

    async def connect_device() -> MemoryTransport:
        transports.append(broker.connect("phone-1"))
        return transports[-1]

    def lose_link(_: object) -> None:
        if meter.get(metrics.STEPS) == lose_link_after and len(transports) == 1:
            broker.drop(transports[0])

    config = AgentConfig(job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=folder / "state")
    async with serving(toy.job(toy.Variant()), broker=broker) as cluster:
        result, agent = await cluster.train(config, connect=connect_device, observe=lose_link, meter=meter)
    assert result.done
    return agent, meter


async def test_a_training_is_counted_step_by_step_and_phase_by_phase(tmp_path: Path) -> None:
    agent, meter = await trained(tmp_path)
    assert agent.session is not None
    steps = agent.session.plan.total_steps
    assert meter.get(metrics.STEPS) == meter.get(metrics.STEP_SECONDS) == steps > 0
    for phase in ("head", "forwarding", "tail", "backwarding", "applying"):
        assert meter.get(metrics.PHASE_SECONDS, phase) == steps
    assert meter.get(metrics.PHASE_SECONDS, "saving") > 0, "checkpoints are timed"
    assert meter.get(metrics.PHASE_SECONDS, "closing") == 1
    assert meter.get(metrics.CONNECTIONS) == meter.get(metrics.ATTEMPTS) == 1
    assert meter.get(metrics.SKIPPED) == meter.get(metrics.HAVES) == 0
    sent = sum(meter.get(metrics.BYTES, "sent", codec) for codec in ("fp32", "none"))
    assert sent == agent.link.bytes_up
    assert 0 < meter.get(metrics.BYTES, "received", "fp32") < agent.link.bytes_down


async def test_gauges_say_where_the_training_stands(tmp_path: Path) -> None:
    agent, meter = await trained(tmp_path)
    await metrics.measure(agent)
    assert meter.get(metrics.STEP) == meter.get(metrics.TOTAL_STEPS) == meter.get(metrics.STEPS)
    assert meter.get(metrics.CHECKPOINTS) >= 1
    assert meter.get(metrics.LOSS) > 0
    assert meter.get(metrics.LINK_UP) == meter.get(metrics.DOWNLOAD_BYTES) == 0
    assert await metrics.why_not_ready(agent) == "not connected to the broker"


async def test_a_lost_link_is_counted_as_one_more_connection(tmp_path: Path) -> None:
    agent, meter = await trained(tmp_path, lose_link_after=2)
    assert agent.session is not None
    assert meter.get(metrics.CONNECTIONS) == 2
    assert meter.get(metrics.STEPS) == agent.session.plan.total_steps


async def test_before_the_job_is_there_only_the_link_is_told(tmp_path: Path) -> None:
    meter = Recorded()

    async def connect() -> MemoryTransport:
        raise AssertionError("never run")

    agent = Agent(
        AgentConfig(job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=tmp_path),
        connect=connect,
        compute=TorchThread(),
        meter=meter,
    )
    await metrics.measure(agent)
    assert {name for name, *_ in meter.values} == {metrics.LINK_UP.name, metrics.DOWNLOAD_BYTES.name}


def test_every_metric_is_exported_from_the_start_under_its_name() -> None:
    text = PrometheusMeter(metrics.ALL).render().decode()
    for metric in metrics.ALL:
        assert f"# TYPE {metric.name} {metric.kind}\n" in text
