"""Enrolling, rotating, revoking: the commands and the file, against a real broker's accounts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from broker import connect
from broker.gateway.server import Gateway, serve
from broker.gateway.upstream import broker_upstream
from broker.transport.topology import REPLY_SLOTS, reply_queue, reply_slot
from deploy.accounts import Accounts, device_permissions
from device_agent.observations import Observation, StepTaken
from server_worker.store import Attempt, StoredJob, open_store
from spliteasy.errors import LinkRefused, UserError
from spliteasy.job.signing import check_signature
from spliteasy_cli.support import enrolment
from spliteasy_cli.support.enrolment import certificates, connect_enrolled, read_enrolment
from tests.attack.arena import management_url, open_arena
from tests.cli.conftest import Project, Ran, finish, read_until, started
from tests.fixtures_rabbitmq import RabbitBroker, free_ports
from tests.simulation import toy

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def operator(
    spliteasy: Callable[..., Ran],
    rabbitmq_broker: RabbitBroker,
    rabbitmq_url: str,
    rabbitmq_vhost: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Callable[..., Ran]]:
    """The command line with the operator's settings; its devices are gone at the end."""
    monkeypatch.setenv("SPLITEASY_BROKER", rabbitmq_url)
    monkeypatch.setenv("SPLITEASY_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.setenv("SPLITEASY_MANAGEMENT", management_url(rabbitmq_broker.node))
    yield spliteasy
    accounts = Accounts(management_url(rabbitmq_broker.node), vhost=rabbitmq_vhost)
    for account in accounts.list():
        accounts.revoke(account.name)


def test_a_phone_is_enrolled_by_a_link(operator: Callable[..., Ran], tmp_path: Path) -> None:
    web = ("device", "enroll", "phone-2", "--web", "--gateway", "ws://127.0.0.1:8443")
    ran = operator(*web)
    assert ran.code == 2, "it needs a job"
    assert "--web needs" in ran.err
    ran = operator(*web, "--job", "digits")
    assert ran.code == 0, ran.err
    (link,) = re.findall(r"^http://127\.0\.0\.1:8443/#\S+$", ran.out, re.MULTILINE)
    assert len(link) > 100
    assert read_enrolment(tmp_path / "phone-2.enrol").job == "digits"


async def test_enrol_rotate_revoke(operator: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "phone-1.enrol"
    ran = await asyncio.to_thread(operator, "device", "enroll", "phone-1", "--job", "digits")
    assert ran.code == 0, ran.err
    assert "spliteasy agent --enrolment phone-1.enrol --data DATA" in ran.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = read_enrolment(file)
    assert (first.account, first.job, first.role) == ("phone-1", "digits", "device")
    assert first.password.get_secret_value() not in ran.out + ran.err + repr(first)
    transport = await connect_enrolled(file)
    assert transport.principal == "phone-1"

    ran = operator("device", "enroll", "phone-1")
    assert "phone-1: has a new password" in ran.out
    await transport.depth("spliteasy.front")  # rotation leaves what is connected alone
    with pytest.raises(LinkRefused):
        await connect(first.url)
    await (await connect_enrolled(file)).close()

    ran = operator("device", "revoke", "phone-1")
    assert ran.code == 0, ran.err
    await transport.wait_lost()
    await transport.close()
    with pytest.raises(LinkRefused):
        await connect_enrolled(file, patience_s=0)
    ran = operator("device", "revoke", "phone-1")
    assert ran.code == 2
    assert "nobody is enrolled as phone-1" in ran.error
    assert sorted(os.listdir(tmp_path)) == ["phone-1.enrol", "store.db"]


async def test_a_device_that_is_enrolled_for_a_gateway_connects_through_it(
    operator: Callable[..., Ran], rabbitmq_url: str, tmp_path: Path
) -> None:
    gateway = Gateway(broker_upstream(rabbitmq_url))
    async with serve(gateway, host="127.0.0.1", port=0) as port:
        url = f"ws://127.0.0.1:{port}"
        ran = await asyncio.to_thread(operator, "device", "enroll", "phone-1", "--gateway", url)
        assert ran.code == 0, ran.err
        assert read_enrolment(tmp_path / "phone-1.enrol").broker == url
        transport = await connect_enrolled(tmp_path / "phone-1.enrol")
        assert (transport.principal, gateway.devices) == ("phone-1", 1)
        await transport.declare(reply_slot("phone-1", 3))
        await transport.close()
    for wrong in (
        "amqps://gate.example",
        "wss://phone-1:secret@gate.example",
        "gate.example",
        "wss://a:b@c@d",
    ):
        ran = await asyncio.to_thread(operator, "device", "enroll", "phone-1", "--gateway", wrong)
        assert (ran.code, "secret" in ran.err) == (2, False), ran.err
    ran = await asyncio.to_thread(
        operator, "device", "enroll", "w", "--worker", "--gateway", "wss://gate.example"
    )
    assert (ran.code, "workers connect to the broker itself" in ran.err) == (2, True)


async def test_a_refused_agent_takes_the_file_that_comes_then(
    operator: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.enrol", tmp_path / "new.enrol"
    operator("device", "enroll", "phone-1", "-o", old)
    operator("device", "enroll", "phone-1", "-o", new)
    with pytest.raises(LinkRefused):
        await connect_enrolled(old, patience_s=0)
    reads = count()

    def read(file: Path, **options: Any) -> enrolment.Enrolment:
        if next(reads) == 2:  # it was refused, and has looked once
            new.replace(old)
        return read_enrolment(file, **options)

    monkeypatch.setattr(enrolment, "read_enrolment", read)
    await (await connect_enrolled(old)).close()
    assert next(reads) > 2


async def test_an_enrolled_device_trains_through_an_enrolled_worker_until_it_is_revoked(
    rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, tmp_path: Path
) -> None:
    async with asyncio.timeout(90):
        async with open_arena(rabbitmq_broker.node, rabbitmq_vhost, tmp_path) as arena:
            assert (await arena.train(arena.new_device())).done
            endless, other = toy.Variant(epochs=100_000), tmp_path / "other"
        other.mkdir()
        async with open_arena(rabbitmq_broker.node, rabbitmq_vhost, other, variant=endless) as arena:
            device = arena.new_device()
            training = await arena.train_until(device, 5)
            arena.enroll(device)
            assert arena.accounts.revoke(device)
            with pytest.raises(LinkRefused, match="refused the account"):
                await training
            assert [account.name for account in arena.accounts.list()] == ["workers"]


async def test_a_password_that_rotates_while_the_device_trains_costs_no_step(
    operator: Callable[..., Ran], rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, tmp_path: Path
) -> None:
    """The device's connections are cut afterwards: it comes back by the new file, and ends bit-identical."""
    steps: list[int] = []
    some, variant = asyncio.Event(), toy.Variant(epochs=12)

    def observe(told: Observation) -> None:
        if isinstance(told, StepTaken):
            steps.append(told.step)
            if told.step == 5:
                some.set()

    async with (
        asyncio.timeout(90),
        open_arena(rabbitmq_broker.node, rabbitmq_vhost, tmp_path, variant=variant) as arena,
    ):
        device = arena.new_device()
        old = read_enrolment(arena.file(device))
        training = asyncio.create_task(arena.train(device, observe=observe))
        await some.wait()
        ran = operator("device", "enroll", device, "--rotate")
        assert ran.code == 0, ran.err
        rabbitmq_broker.call("DELETE", f"connections/username/{device}")
        assert (await training).done
        new = read_enrolment(arena.file(device))
        assert new.password != old.password
        assert new.model_copy(update={"password": old.password}) == old
        with pytest.raises(LinkRefused):
            await connect(old.url)
    assert steps == list(range(1, len(steps) + 1)), "each once, in order"


def test_only_what_is_there_rotates(operator: Callable[..., Ran], tmp_path: Path) -> None:
    assert "nobody is enrolled as phone-1" in operator("device", "enroll", "phone-1", "--rotate").error
    operator("device", "enroll", "phone-1", "--job", "digits")
    operator("device", "enroll", "phone-2")
    assert operator("device", "enroll", "phone-1", "--rotate").code == 0
    assert read_enrolment(tmp_path / "phone-1.enrol").job == "digits"
    crossed = operator("device", "enroll", "phone-1", "--rotate", "-o", "phone-2.enrol")
    assert "the enrolment of phone-2" in crossed.error
    assert "can't be read" in operator("device", "enroll", "phone-1", "--rotate", "-o", "none.enrol").error


def test_devices_are_listed_with_what_they_trained(operator: Callable[..., Ran], tmp_path: Path) -> None:
    assert "no devices" in operator("device", "list").out
    for device in ("phone-1", "phone-2"):
        operator("device", "enroll", device)
    assert "--enrolment workers.enrol" in operator("device", "enroll", "workers", "--worker").out
    asyncio.run(_open_session(f"sqlite:///{tmp_path / 'store.db'}", "digits.phone-2"))
    ran = operator("device", "list", "--json")
    assert ran.code == 0, ran.err
    idle, trained = json.loads(ran.out)
    nothing = {"device": "phone-1", "connected": False, "seen_at": None, "job": None, "step": None}
    assert idle == {**nothing, "version": None, "allowed": None}
    assert (trained["device"], trained["job"], trained["step"]) == ("phone-2", "digits", 0)
    assert trained["version"] == "1.2.3"
    assert abs(trained["seen_at"] - time.time()) < 60
    assert "never" in operator("device", "list").out
    page = operator("device", "list", "--devices", "1")
    assert "1 more: --after phone-1" in page.out
    assert "phone-2" not in page.out
    (last,) = json.loads(operator("device", "list", "--json", "--after", "phone-1").out)
    assert last == trained


async def _open_session(url: str, session: str) -> None:
    store = await open_store(url)
    try:
        job = session.partition(".")[0]
        await store.put_job(StoredJob(name=job, digest="0" * 64, manifest=b"{}", parts={}))
        await store.open_session(
            session,
            job_digest="0" * 64,
            attempt=Attempt(number=1, nonce="a" * 16),
            held=(0,),
            worker="b" * 16,
            environment="test",
            agent="1.2.3",
        )
    finally:
        await store.close()


def test_a_device_is_limited_to_jobs_and_the_list_shows_it(operator: Callable[..., Ran]) -> None:
    def allowed() -> list[list[str] | None]:
        return [each["allowed"] for each in json.loads(operator("device", "list", "--json").out)]

    version = "faces@" + "a" * 64
    ran = operator("device", "enroll", "phone-1", "--job", "digits", "--job", version)
    assert ran.code == 0, ran.err
    operator("device", "enroll", "phone-2")
    assert allowed() == [["digits", version], None]
    operator("device", "enroll", "phone-1")
    assert allowed() == [["digits", version], None], "a new password changes no limits"
    table = operator("device", "list").out
    assert "digits, faces@aaaaaaaaaaaa" in table
    assert "any job" in table
    for arguments, says, found in (
        (("faces",), "may train faces", ["faces"]),
        (("--none",), "may train nothing", []),
        (("--any",), "may train any job", None),
    ):
        assert f"phone-1: {says}" in operator("device", "allow", "phone-1", *arguments).out
        assert allowed()[0] == found
    for wrong in ((), ("digits", "--any"), ("--any", "--none")):
        assert "which jobs?" in operator("device", "allow", "phone-1", *wrong).error
    assert "does not fit" in operator("device", "allow", "phone-1", "digits@abc").error
    assert (
        "changes the password only" in operator("device", "enroll", "phone-1", "--rotate", "--job", "a").error
    )
    assert "does not fit" in operator("device", "enroll", "phone-3", "--job", "Digits").error


def test_a_key_reaches_the_device_and_its_signature_the_store(
    operator: Callable[..., Ran], new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = new_project()
    ran = operator("keygen")
    assert ran.code == 0, ran.err
    assert stat.S_IMODE((tmp_path / "operator.key").stat().st_mode) == 0o600
    assert "exists already" in operator("keygen").error
    assert "signed with operator.key" in operator("submit", project.job_file, "--sign", "operator.key").out
    for arguments, key in (((), None), (("--operator-key", "operator.key.pub"), 64)):
        ran = operator("device", "enroll", "phone-1", *arguments)
        assert ran.code == 0, ran.err
        assert ("see `spliteasy keygen`" in ran.err) is (key is None)
        enrolled = read_enrolment(tmp_path / "phone-1.enrol")
        assert enrolled.operator_key is None if key is None else len(enrolled.operator_key or "") == key
    stored = asyncio.run(_job(f"sqlite:///{tmp_path / 'store.db'}", "tiny"))
    assert stored is not None
    check_signature(stored.manifest, stored.signature, enrolled.operator_key or "")
    assert (
        "is no public key" in operator("device", "enroll", "phone-1", "--operator-key", "operator.key").error
    )
    assert "no private key" in operator("submit", project.job_file, "--sign", "operator.key.pub").error


async def _job(url: str, name: str) -> StoredJob | None:
    store = await open_store(url)
    try:
        return await store.get_job(name)
    finally:
        await store.close()


def test_what_a_device_may_hold_of_the_broker_is_bounded(
    operator: Callable[..., Ran], rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str
) -> None:
    operator("device", "enroll", "phone-1")
    (limits,) = rabbitmq_broker.call("GET", "user-limits/phone-1")
    assert limits["value"] == {"max-connections": 16, "max-channels": 128}
    (policy,) = rabbitmq_broker.call("GET", f"policies/{rabbitmq_vhost}")
    assert re.match(policy["pattern"], reply_queue("phone-1", "0" * 16).name)
    assert policy["definition"] == {
        "expires": 120_000,
        "max-length-bytes": 512 << 20,
        "overflow": "drop-head",
    }
    allowed = device_permissions("phone-1")
    (may,) = rabbitmq_broker.call("GET", "users/phone-1/permissions")
    assert may["configure"] == may["read"] == allowed.configure
    names = [reply_slot("phone-1", slot).name for slot in range(REPLY_SLOTS)]
    assert len(set(names)) == REPLY_SLOTS
    assert all(re.search(allowed.configure, name) for name in names)
    for name in (f"{names[0]}0", f"x{names[0]}", reply_queue("phone-1", f"{REPLY_SLOTS:016x}").name):
        assert not re.search(allowed.configure, name)


def test_revoking_leaves_nothing_of_a_device(
    operator: Callable[..., Ran], rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str
) -> None:
    operator("device", "enroll", "phone-1")
    operator("device", "enroll", "phone-10")
    arguments = ({"x-queue-type": kind} for kind in ("stream", "quorum", "classic"))
    for slot, each in enumerate(arguments):
        for device in ("phone-1", "phone-10"):
            queue = f"queues/{rabbitmq_vhost}/{reply_slot(device, slot).name}"
            rabbitmq_broker.call("PUT", queue, {"durable": True, "arguments": each})
    exchange = f"exchanges/{rabbitmq_vhost}/{reply_slot('phone-1', 9).name}"
    rabbitmq_broker.call("PUT", exchange, {"type": "fanout", "durable": True})
    assert operator("device", "revoke", "phone-1").code == 0
    of_vhost = [f"vhosts/{rabbitmq_vhost}/{kind}" for kind in ("permissions", "topic-permissions")]
    for kind in (f"queues/{rabbitmq_vhost}", f"exchanges/{rabbitmq_vhost}", *of_vhost):
        listed = json.dumps(rabbitmq_broker.call("GET", f"{kind}?columns=name,user"))
        assert '"phone-1"' not in listed
        assert "reply.phone-1." not in listed
        assert kind.startswith("exchanges") or "phone-10" in listed
    left = f"queues/{rabbitmq_vhost}/{reply_slot('phone-1', 0).name}"
    rabbitmq_broker.call("PUT", left, {"durable": True, "arguments": {"x-queue-type": "stream"}})
    assert operator("device", "revoke", "phone-1").code == 0, "what an earlier version left goes as well"
    assert "nobody is enrolled" in operator("device", "revoke", "phone-1").error


def test_accounts_that_are_not_ours_are_left_alone(
    operator: Callable[..., Ran], rabbitmq_broker: RabbitBroker
) -> None:
    user = rabbitmq_broker.node.user
    ran = operator("device", "enroll", user)
    assert ran.code == 2
    assert f"{user} is an account of the broker already" in ran.error
    assert operator("device", "revoke", user).code == 2
    operator("device", "enroll", "workers", "--worker")
    assert "not one of a device" in operator("device", "enroll", "workers").error
    assert rabbitmq_broker.call("GET", f"users/{user}")["tags"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://a:s3cret@127.0.0.1:{closed}", "connection refused"),
        ("http://spliteasy:s3cret@127.0.0.1:{open}", "refused the account"),
        ("http://a:s3cret@broker.example:15672", "your password in the clear"),
        ("https://a:s3cret@127.0.0.1:{open}", "can't be reached"),
        ("https://a:s3cret@127.0.0.1?cafile=/no/file", "/no/file can't be read"),
        ("amqp://a:s3cret@127.0.0.1", "not one of HTTP"),
        ("http://127.0.0.1:999999", "host or port that is not valid"),
    ],
)
def test_what_is_wrong_with_a_management_url(
    url: str, says: str, operator: Callable[..., Ran], rabbitmq_broker: RabbitBroker, tmp_path: Path
) -> None:
    node = rabbitmq_broker.node
    where = url.format(closed=free_ports(1)[0], open=node.management_port)
    ran = operator("device", "enroll", "phone-1", "--management", where)
    assert ran.code != 0
    assert says in ran.error
    assert "s3cret" not in ran.error
    assert not [path for path in tmp_path.iterdir() if "enrol" in path.name]


def test_an_enrolment_file_that_is_none(operator: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "phone-1.enrol"
    agent = ("agent", "--data", "m:f", "--enrolment", file)
    assert "no such file" in operator(*agent).error
    operator("device", "enroll", "phone-1")
    assert "--job is missing" in operator(*agent).error
    assert "not of phone-2" in operator(*agent, "--device", "phone-2").error
    text = file.read_text()
    file.chmod(0o604)
    assert "chmod 600" in operator(*agent).error
    file.chmod(0o600)
    secret = json.loads(text)["password"]
    for wrong in (
        text.replace("phone-1", "phone.1"),
        text.replace('"amqp:', '"http:'),
        text.replace('"password"', '"passw"'),
        text[:-3],
        "[]",
    ):
        file.write_text(wrong)
        ran = operator(*agent)
        assert ran.code == 2
        assert "is not what `spliteasy device enroll` writes" in ran.error
        assert secret not in ran.error
    file.write_text(text.replace('"device"', '"worker"'))
    assert "the enrolment of a worker" in operator(*agent).error
    assert "--device is missing" in operator("agent", "--data", "m:f", "--job", "digits").error


@pytest.mark.parametrize(
    ("mode", "owner", "private"),
    [
        (0o600, 1000, True),
        (0o400, 1000, True),
        (0o440, 1000, False),
        (0o440, 0, True),  # a secret volume
        (0o460, 0, False),
        (0o444, 0, False),
    ],
)
def test_who_may_read_an_enrolment_file(mode: int, owner: int, private: bool) -> None:
    assert enrolment.is_private(0o100000 | mode, owner) is private


def test_an_authority_that_is_none(operator: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    assert "has no certificate" in operator("device", "enroll", "phone-1", "--ca", "ca.pem").error
    with pytest.raises(UserError, match="can't be read"):
        certificates(tmp_path / "no.pem")


def test_no_secret_is_in_a_process_list_or_a_log(
    operator: Callable[..., Ran], new_project: Callable[..., Project], tmp_path: Path
) -> None:
    """An agent and a worker with their enrolment files, logging all they can."""
    project = new_project()
    assert operator("device", "enroll", "phone-1", "--job", "tiny").code == 0
    assert operator("device", "enroll", "workers", "--worker").code == 0
    assert operator("submit", project.job_file).code == 0
    files = [tmp_path / "phone-1.enrol", tmp_path / "workers.enrol"]
    secrets = [json.loads(file.read_text())["password"] for file in files]
    assert all(len(secret) >= 32 for secret in secrets)
    shown, environment = [], {"SPLITEASY_BROKER": "", "SPLITEASY_MANAGEMENT": ""}
    agent = ("--debug", "agent", "--enrolment", files[0], "--data", f"{project.module}:device_data")
    with (
        started(("--debug", "worker", "--enrolment", files[1]), project.folder, **environment) as worker,
        started(agent, project.folder, **environment) as agent_process,
    ):
        shown.append(read_until(agent_process, '"step":1'))
        pids = (worker.pid, agent_process.pid)
        for each in ("cmdline", "environ"):
            shown += [Path(f"/proc/{pid}/{each}").read_bytes().decode() for pid in pids]
        shown.append(finish(agent_process))
        worker.terminate()
        shown.append(finish(worker))
    assert "phone-1: done, 20 steps" in shown[-2]
    assert '"level":"debug"' in shown[0]
    assert "jobs are not checked for a signature" in shown[0], "the enrolment has no key"
    assert not [secret for secret in secrets if any(secret in text for text in shown)]
