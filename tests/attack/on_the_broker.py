"""Attacks that the broker must stop: other devices' queues and keys, accounts, connections."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import aiormq

from broker import connect
from broker.protocol import messages as m
from broker.transport.topology import (
    DEAD,
    FRONT,
    REPLY_SLOTS,
    UPLINK,
    reply_queue,
    reply_slot,
    shard_queue,
    uplink_key,
)
from deploy.accounts import MAX_CONNECTIONS, Accounts
from deploy.nodes.native import HOST
from spliteasy.errors import LinkDeferred, LinkError, LinkRefused
from tests.attack.hostile import ANSWER_S, Hostile, Undefended, refused

Properties = aiormq.spec.Basic.Properties


async def read_replies_of_another(attacker: Hostile) -> str:
    """Consume, get and purge the reply queue of a device that is connected."""
    victim = attacker.arena.new_device()
    queue = reply_slot(victim, 5)
    url = attacker.arena.url(attacker.name)
    transport = await connect(attacker.arena.url(victim))
    try:
        await transport.declare(queue)
        await refused(url, lambda channel: channel.basic_get(queue.name))
        await refused(url, lambda channel: channel.queue_purge(queue.name))
        return await refused(url, lambda channel: channel.basic_consume(queue.name, _ignore))
    finally:
        await transport.close()


async def read_requests(attacker: Hostile) -> str:
    """Consume what all devices send, or what was buried."""
    url, said = attacker.arena.url(attacker.name), ""
    for queue in (FRONT, shard_queue(3).name, DEAD):
        said = await refused(url, lambda channel, queue=queue: channel.basic_consume(queue, _ignore))  # type: ignore[misc]
    return said


async def eavesdrop_by_binding(attacker: Hostile) -> str:
    """Bind a queue of one's own to the exchange that all devices publish to."""
    return await refused(
        attacker.arena.url(attacker.name),
        lambda channel: channel.queue_bind(attacker.queue, UPLINK, routing_key="s.#"),
    )


async def delete_queues(attacker: Hostile) -> str:
    """Delete queues and the exchange."""
    url = attacker.arena.url(attacker.name)
    await refused(url, lambda channel: channel.queue_delete(FRONT))
    await refused(url, lambda channel: channel.exchange_delete(UPLINK))
    return await refused(url, lambda channel: channel.queue_delete(shard_queue(3).name))


async def declare_queues(attacker: Hostile) -> str:
    """Declare what belongs to others: a shard, another's reply queue, names like one's own."""
    url, said = attacker.arena.url(attacker.name), ""
    longer = reply_slot(f"{attacker.name}0", 3).name
    for name in ("spliteasy.shard.99", longer, "mine", attacker.name, f"x{attacker.queue}"):
        said = await refused(url, lambda channel, name=name: channel.queue_declare(name, durable=True))  # type: ignore[misc]
    return said


async def publish_under_another_key(attacker: Hostile) -> str:
    """Speak as another device, or as one whose name begins alike."""
    said = ""
    for key in (uplink_key("phone-999", 3), uplink_key(f"{attacker.name}0", 3), f"{attacker.key}.x", "s"):
        said = await refused(
            attacker.arena.url(attacker.name),
            lambda channel, key=key: channel.basic_publish(b"x", exchange=UPLINK, routing_key=key),  # type: ignore[misc]
        )
    return said


async def publish_to_a_queue(attacker: Hostile) -> str:
    """Forge a reply: the default exchange reaches every queue by name."""
    victim = reply_queue("phone-1", m.new_nonce()).name
    return await refused(
        attacker.arena.url(attacker.name), lambda channel: channel.basic_publish(b"x", routing_key=victim)
    )


async def forge_the_user_id(attacker: Hostile) -> str:
    """Say that the message is from another account."""
    return await refused(
        attacker.arena.url(attacker.name),
        lambda channel: channel.basic_publish(
            b"x", exchange=UPLINK, routing_key=attacker.key, properties=Properties(user_id="workers")
        ),
    )


async def flood_with_connections(attacker: Hostile) -> str:
    """Open connections until the broker has no sockets left."""
    url = attacker.arena.url(attacker.name)
    async with AsyncExitStack() as opened:
        for number in range(MAX_CONNECTIONS + 4):
            try:
                connection = await aiormq.connect(url)
            except (aiormq.exceptions.AMQPError, ConnectionError, RuntimeError):
                return f"broker: at most {number + 2} connections of one account"
            opened.push_async_callback(connection.close)
    raise Undefended(f"{MAX_CONNECTIONS + 4} connections")


async def administrate(attacker: Hostile) -> str:
    """Use one's account on the management API."""
    password = attacker.arena.password(attacker.name)
    url = f"http://{attacker.name}:{password}@{HOST}:{attacker.arena.node.management_port}"
    for act in ("list", "revoke"):
        accounts = Accounts(url, vhost=attacker.arena.vhost)
        try:
            _ = accounts.list() if act == "list" else accounts.revoke("workers")
        except LinkRefused as error:
            said = f"broker: {error.message}"
        else:
            raise Undefended(f"a device may {act} accounts")
    return said


async def come_back_after_revocation(attacker: Hostile) -> str:
    """Go on with an account that was revoked: over the open connection, and over a new one."""
    attacker.arena.accounts.revoke(attacker.name)
    async with asyncio.timeout(20):
        await attacker.transport.wait_lost()
    try:
        await (await connect(attacker.arena.url(attacker.name))).close()
    except LinkRefused as error:
        return f"broker: {error.message}"
    raise Undefended("the account still connects")


async def guess_accounts(attacker: Hostile) -> str:
    """An outsider: default accounts, wrong passwords, none."""
    node, said = attacker.arena.node, ""
    for user, password in (("guest", "guest"), (attacker.name, "guess"), ("nobody", ""), ("workers", "")):
        url = replace(node, user=user, password=password).url(attacker.arena.vhost)
        try:
            await (await connect(url)).close()
        except LinkRefused as error:
            said = f"broker: {error.message}"
        else:
            raise Undefended(f"{user} came in")
    return said


async def enter_another_virtual_host(attacker: Hostile) -> str:
    """The default one, where other software may live."""
    try:
        await (await connect(attacker.arena.url(attacker.name).rpartition("/")[0] + "/")).close()
    except (LinkDeferred, LinkRefused) as error:
        return f"broker: {error.message}"
    raise Undefended("a device came into another virtual host")


async def redirect_dead_letters(attacker: Hostile) -> str:
    """Let one's own queue dead-letter replies to another's key, past the topic permissions."""
    victim = uplink_key("phone-999", 3)
    arguments = {"x-dead-letter-exchange": UPLINK, "x-dead-letter-routing-key": victim}
    return await _no_reply_comes_to(attacker, arguments)


async def declare_streams(attacker: Hostile) -> str:
    """A stream keeps what was read, and never expires."""
    return await _no_reply_comes_to(attacker, {"x-queue-type": "stream", "x-max-length-bytes": 1 << 40})


async def declare_quorum_queues(attacker: Hostile) -> str:
    """A log on every node of the broker."""
    return await _no_reply_comes_to(attacker, {"x-queue-type": "quorum"})


async def declare_queues_without_bounds(attacker: Hostile) -> str:
    """Classic, and for ever: no expiry, and then one of years."""
    await _no_reply_comes_to(attacker, {"x-queue-type": "classic"})
    return await _no_reply_comes_to(attacker, {"x-queue-type": "classic", "x-expires": (1 << 32) - 1})


async def declare_queues_without_number(attacker: Hostile) -> str:
    """Queues of one's own by the thousand: the account may have so many names."""
    url, said = attacker.arena.url(attacker.name), ""
    for nonce in (f"{REPLY_SLOTS:016x}", "f" * 16, "0" * 17, "0" * 64, m.new_nonce()):
        name = reply_queue(attacker.name, nonce).name
        said = await refused(url, lambda channel, name=name: channel.queue_declare(name, durable=True))  # type: ignore[misc]
    return said


async def leave_queues_behind(attacker: Hostile) -> str:
    """Have queues of every type, and exchanges, that outlive the account."""
    connection = await aiormq.connect(attacker.arena.url(attacker.name))
    try:
        channel = await connection.channel()
        for slot, kind in enumerate(("stream", "quorum", "classic"), start=1):
            name = reply_slot(attacker.name, slot).name
            await channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind})
        await channel.exchange_declare(reply_slot(attacker.name, 4).name, durable=True)
    finally:
        await connection.close()
    attacker.arena.accounts.revoke(attacker.name)
    left = attacker.arena.accounts.left_of(attacker.name)
    if left:
        raise Undefended(f"still there: {left}")
    return "revoke: account, permissions, queues and exchanges are gone"


async def _no_reply_comes_to(attacker: Hostile, arguments: dict[str, Any]) -> str:
    """Have the worker answer to a queue with those arguments. Raises Undefended where it does."""
    connection = await aiormq.connect(attacker.arena.url(attacker.name))
    try:
        channel = await connection.channel()
        attacker.queue = reply_slot(attacker.name, 1).name
        try:
            await channel.queue_declare(attacker.queue, durable=True, arguments=arguments)
        except aiormq.exceptions.ChannelAccessRefused as error:
            return f"broker: {' '.join(str(error).split())[:70]}"
    finally:
        await connection.close()
    subscription = await attacker.transport.subscribe(attacker.queue, prefetch=1)
    await attacker.send(m.GetJob(session=attacker.session), key=uplink_key(attacker.name, None))
    try:
        async with asyncio.timeout(ANSWER_S):
            async for _ in subscription:
                raise Undefended("a reply came")
    except LinkError as error:
        return f"worker deletes it: {error.message}"[:70]
    raise Undefended("the queue was left as it is")


async def _ignore(_: object) -> None: ...


ATTACKS = (
    read_replies_of_another,
    read_requests,
    eavesdrop_by_binding,
    delete_queues,
    declare_queues,
    publish_under_another_key,
    publish_to_a_queue,
    forge_the_user_id,
    redirect_dead_letters,
    declare_streams,
    declare_quorum_queues,
    declare_queues_without_bounds,
    declare_queues_without_number,
    leave_queues_behind,
    flood_with_connections,
    administrate,
    enter_another_virtual_host,
    guess_accounts,
    come_back_after_revocation,
)
