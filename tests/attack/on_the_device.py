"""Attacks that the device must stop: somebody in the middle who plays the broker, jobs that were altered."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from urllib.parse import quote

from broker import connect
from broker.protocol import messages as m
from deploy.nodes.certificates import TlsFiles, make_certificates
from deploy.nodes.native import HOST
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from server_worker.store import Attempt, StoredJob
from spliteasy.errors import JobError, LinkError, PortableError, StateError
from spliteasy.job.package import job_digest, manifest_of
from spliteasy.job.signing import new_key, read_public_key, read_signer
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.support.enrolment import certificates, read_enrolment
from tests.attack.hostile import ATTEMPT, Hostile, Undefended
from tests.attack.hostile_worker import ANSWERS, storm
from tests.drawn import SECRET
from tests.simulation import toy


async def strip_tls(attacker: Hostile) -> str:
    """Answer in the clear where the device's enrolment asks for TLS."""
    return await intercept(attacker, None)


async def show_a_foreign_certificate(attacker: Hostile) -> str:
    """Play the broker with a certificate of an authority that the device does not know."""
    return await intercept(attacker, make_certificates(attacker.arena.folder / "foreign"))


async def show_an_expired_certificate(attacker: Hostile) -> str:
    """The same with one of the right authority that has run out."""
    return await intercept(attacker, certificate(attacker, "expired", days=-1))


async def show_a_certificate_of_another_name(attacker: Hostile) -> str:
    """The same with a valid one of the right authority, but of another server."""
    return await intercept(attacker, certificate(attacker, "another", hosts=("broker.example",)))


async def alter_the_job_package(attacker: Hostile) -> str:
    """Hand out a job unsigned, signed by another, with other weights, or with another plan."""
    folder, job = attacker.arena.folder, toy.job(attacker.arena.variant)
    keys = [folder / f"{attacker.name}-{who}.key" for who in ("operator", "other")]
    for file in keys:
        private, public = new_key()
        file.touch(0o600)
        file.write_bytes(private)
        file.with_suffix(".pub").write_bytes(public)
    signed, forged = (read_signer(file)(job.digest) for file in keys)
    spec = job.parts["spec.json"].replace(b'"seed":', b'"seed":9')
    plan, weights = {**job.parts, "spec.json": spec}, bytearray(job.parts["head.safetensors"])
    weights[-1] ^= 1
    other = manifest_of("toy", plan)
    said = ""
    for number, (manifest, parts, signature) in enumerate(
        (
            (job.manifest, job.parts, None),
            (job.manifest, job.parts, forged),
            (job.manifest, {**job.parts, "head.safetensors": bytes(weights)}, signed),
            (other, plan, signed),
        )
    ):
        name = f"altered-{number}"
        stored = StoredJob(
            name=name, digest=job_digest(manifest), manifest=manifest, parts=parts, signature=signature
        )
        await attacker.arena.store.put_job(stored)
        said = await _refused(attacker, name, read_public_key(keys[0].with_suffix(".pub")))
    return said


async def train_what_is_not_allowed(attacker: Hostile) -> str:
    """Fetch and open a job that the operator did not allow this device."""
    await attacker.arena.store.allow(attacker.name, ["something-else"])
    digest = toy.job(attacker.arena.variant).digest
    await attacker.send(m.Open(session=attacker.session, attempt=ATTEMPT, digest=digest, held=(0,)))
    reply = await attacker.reply()
    if not isinstance(reply, m.Error) or await attacker.arena.store.session(attacker.session) is not None:
        raise Undefended(f"OPEN was answered {reply.kind}")
    return f"worker: {reply.code}: {reply.message}"


async def count_attempts_up(attacker: Hostile) -> str:
    """Say that the newest attempt has the largest number there is, to an agent that takes over."""
    arena, compute = attacker.arena, TorchThread()
    digest = toy.job(arena.variant).digest
    await arena.store.open_session(
        attacker.session,
        job_digest=digest,
        attempt=Attempt(number=m.MAX_STEP, nonce="f" * 16),
        held=(0,),
        worker="hostile",
        environment="",
    )
    state = arena.folder / f"{attacker.name}-taken-over"
    config = AgentConfig(job="toy", device=attacker.name, data=toy.DATA, state=state, takeover=True)
    agent = Agent(config, connect=lambda: connect(arena.url(attacker.name)), compute=compute)
    try:
        await agent.run(asyncio.Event())
    except StateError as error:
        return f"agent: {error.message}"
    finally:
        compute.close()
    raise Undefended("the agent went on")


async def make_the_device_send_at_will(attacker: Hostile) -> str:
    """A worker that asks again and again: 20 s of each kind of answer, 50 a second."""
    most = 0
    for answer in ANSWERS:
        folder = attacker.arena.folder / f"{attacker.name}-{answer.__name__}"
        seen = await asyncio.to_thread(storm, folder, answer, seconds=20.0)
        most = max(most, sum(seen.sent.values()))
    if most > 60:
        raise Undefended(f"{most} requests in 20 s")
    return f"device: {most} requests in 20 s of a thousand answers"


async def use_up_a_metered_link(attacker: Hostile) -> str:
    """The same to a device that pays by the byte."""
    limit, most = 40_000, 0
    for answer in ANSWERS:
        folder = attacker.arena.folder / f"{attacker.name}-metered-{answer.__name__}"
        seen = await asyncio.to_thread(storm, folder, answer, seconds=20.0, metered=limit)
        most = max(most, seen.nbytes)
    if most > limit + 2048:
        raise Undefended(f"{most} bytes of {limit}")
    return f"device: disconnected after {most} of {limit} bytes a day"


async def _refused(attacker: Hostile, job: str, key: str) -> str:
    """Return what an agent says that gets that job, and takes what the key signed."""
    arena, compute = attacker.arena, TorchThread()
    state = arena.folder / f"{attacker.name}-{job}"
    config = AgentConfig(
        job=job, device=attacker.name, data=toy.DATA, secret=SECRET, state=state, operator_key=key
    )
    agent = Agent(config, connect=lambda: connect(arena.url(attacker.name)), compute=compute)
    try:
        await agent.run(asyncio.Event())
    except (JobError, PortableError) as error:
        if agent.trainer is not None or (state / "job").exists():
            raise Undefended("it was loaded before it was refused") from error
        return f"agent: {error.message}"
    finally:
        compute.close()
    raise Undefended(f"{job} was trained")


async def intercept(attacker: Hostile, shown: TlsFiles | None) -> str:
    """Stand between a device and the broker with that certificate (None: in the clear)."""
    arena = attacker.arena
    context = None
    if shown is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(shown.certificate, shown.key)
    async with _in_the_middle(arena.node.port, context) as port:
        enrolment = read_enrolment(arena.file(attacker.name)).model_copy(
            update={
                "broker": f"amqps://{HOST}:{port}/{quote(arena.vhost, safe='')}",
                "ca": certificates(certificate(attacker, "authority").ca),
            }
        )
        try:
            transport = await connect(enrolment.url)
        except LinkError as error:
            return f"device: {error.message}"
        await transport.close()
    raise Undefended("the device gave its password to anybody who stood in the middle")


def certificate(attacker: Hostile, name: str, **changes: object) -> TlsFiles:
    """A certificate of the authority that devices trust."""
    folder = attacker.arena.folder / "authority"
    trusted = make_certificates(folder)
    if name == "authority":
        return trusted
    other = folder.with_name(name)
    other.mkdir(exist_ok=True)
    for file in (trusted.ca, folder / "ca.key"):
        (other / file.name).write_bytes(file.read_bytes())
    return make_certificates(other, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def _in_the_middle(broker_port: int, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A port that passes everything on to the broker, which hears it in the clear."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            onward_reader, onward_writer = await asyncio.open_connection(HOST, broker_port)
            with closing(onward_writer):
                await asyncio.gather(_pass_on(reader, onward_writer), _pass_on(onward_reader, writer))

    server = await asyncio.start_server(meet, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


ATTACKS = (
    strip_tls,
    show_a_foreign_certificate,
    show_an_expired_certificate,
    show_a_certificate_of_another_name,
    alter_the_job_package,
    train_what_is_not_allowed,
    make_the_device_send_at_will,
    use_up_a_metered_link,
    count_attempts_up,
)
