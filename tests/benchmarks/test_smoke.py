"""Each benchmark's smallest case runs, so that a change elsewhere does not break them unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import cache, codecs, flaky, healthy, idle, links, many, scale, sealing
from benchmarks.accuracy import train
from benchmarks.harness import stopwatch
from benchmarks.harness.services import Services
from benchmarks.harness.workloads import WORKLOADS, Setting
from broker import encode
from broker.protocol import messages as m
from deploy.nodes.redis_server import RedisServer
from server_worker.replica.kept_state import pack_state
from tests.fixtures_rabbitmq import RabbitBroker, free_ports


@pytest.fixture
def running(rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, tmp_path: Path) -> Iterator[Services]:
    """The session's broker, in a virtual host of the test's own, and an empty store."""
    redis = RedisServer(folder=tmp_path / "redis", port=free_ports(1)[0])
    redis.start()
    try:
        yield Services(folder=tmp_path, rabbitmq=rabbitmq_broker.node, redis=redis, vhost=rabbitmq_vhost)
    finally:
        redis.stop()


def test_sealing_is_measured_beside_a_copy() -> None:
    assert len(sealing.measure(1000, 1)) == 3


def test_the_stopwatch_knows_what_a_step_writes() -> None:
    """A step of a body that is small beside what crosses its cuts writes the body's state."""
    request = m.Ask(
        session="w2.phone-1",
        attempt=m.AttemptRef(number=1, nonce="0" * 16),
        step=1,
        about="1" * 32,
        about_kind="FORWARD",
        forward="1" * 32,
    )
    assert stopwatch._kind(encode(request)) == "ask"
    assert stopwatch._kind(pack_state({"model/weight": bytes([0xA0] * 40)})) == "state"


@pytest.mark.rabbitmq
@pytest.mark.redis
def test_steps_over_a_link_are_counted(running: Services) -> None:
    (figure,) = links.measure(running, "W0", "lan", [Setting()], steps=2, laps=1)
    values = 30 * (16 * 8 * 8 + 256)  # of a batch: the head's outputs, and the gradients of the body's
    assert 4 * values < figure.bytes_up < 4.1 * values
    assert figure.bound_s > figure.compute_s > 0
    assert "fp32" in links.table_of([figure]).markdown()


@pytest.mark.rabbitmq
@pytest.mark.redis
def test_a_frozen_head_sends_less_from_the_second_epoch_on(running: Services) -> None:
    """Over a real broker and a real store: the rows of a step, and then their names."""
    named, sent = cache.measure(running, "pooled", "lan", epochs=1)
    assert (named.cache, sent.cache) == (True, False)
    rows = cache.STEPS * 32 * 64 * 32 * 32 * 4
    assert sent.first_up > rows
    assert named.first_up > rows
    assert sent.bytes_up > rows
    assert named.bytes_up < 0.1 * rows
    assert "named" in cache.table_of([named, sent]).markdown()


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.redis
def test_a_crowd_is_counted(running: Services) -> None:
    figure = many.measure(running, 2, 2.0)
    assert len(figure.steps) == 2
    assert sum(figure.steps) > 0
    assert 0 < figure.share < 1.5


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.redis
def test_workers_that_wait_are_counted(running: Services) -> None:
    one, two = scale.waiting(running, (1, 2), 2.0, 100.0)
    assert (one.workers, one.sessions, two.workers, two.sessions) == (1, 3, 2, 6)
    assert 0 < one.efficiency < 1.2
    assert one.cpu_ms["broker"] > 0
    assert len(scale.tables_of([], [one, two])) == 2


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.redis
def test_steady_and_flaky_links_end_alike(running: Services) -> None:
    figure = flaky.measure(running, steps=4, laps=2, profiles=("lan", "lan"))
    assert (figure.same_loss, figure.lost_steps) == (True, 0)


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.redis
def test_an_idle_agent_is_watched(running: Services) -> None:
    figures = idle.measure(running, 0.5)
    assert [one.state for one in figures] == ["torch alone", "waiting to begin", "paused, connected"]
    assert figures[0].bytes < figures[2].bytes


@pytest.mark.long
def test_a_race_has_a_figure_of_each_system() -> None:
    figures = healthy.run(WORKLOADS["W0"], ["raw TCP", "ours"], 1)
    assert [one.system for one in figures] == ["plain", "raw TCP", "ours"]


def test_codecs_are_measured() -> None:
    figures = codecs.measure("small", torch.randn(2, 4, 8, 8), 2)
    assert "int8" in codecs.table_of(figures).markdown()


def test_lossless_trains_in_fewer_bytes_than_fp32() -> None:
    """The two jobs have different digests, so that the device draws other first weights for each."""
    plain, packed = (train("distorted", 1, codec, ["phone-1"], 2) for codec in ("fp32", "lossless"))
    assert min(plain.accuracy, packed.accuracy) > 15  # the ten classes are equally frequent
    assert plain.bytes_up > packed.bytes_up
