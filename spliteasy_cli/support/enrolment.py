"""An enrolment file: who a device (or worker) is to the broker, and connecting with it.

JSON, readable by its owner only. It is read again for every connection, so that a new one takes effect
without a restart.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import ssl
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from spliteasy.errors import LinkRefused, UserError
from spliteasy_cli.support.identifiers import IDENTIFIER

if TYPE_CHECKING:
    from broker import Transport

PATIENCE_S = 30.0
"""A refused agent waits this long for a new file before it gives up."""
POLL_S = 0.5
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Enrolment(BaseModel):
    """The contents of an enrolment file. The password shows in no `repr`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    role: Literal["device", "worker"] = "device"
    account: str = Field(pattern=rf"^{IDENTIFIER.pattern}$")
    password: SecretStr
    broker: str = Field(pattern=r"^(amqps?|wss?)://[^@]+$")
    """The URL of the broker, or of a gateway before it, without the account."""
    ca: str | None = None
    """Certificates of the authority that the broker's must come from, in PEM; None: the system's."""
    job: str | None = None
    operator_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The device loads jobs only that this key has signed; None: any."""

    @property
    def url(self) -> str:
        """The broker's URL with the account, for the library only."""
        parts = urlsplit(self.broker)
        account = f"{self.account}:{quote(self.password.get_secret_value(), safe='')}"
        query = urlencode({"cadata": _to_der(self.ca)}) if self.ca else parts.query
        return urlunsplit(parts._replace(netloc=f"{account}@{parts.netloc}", query=query))

    def write(self, file: Path, *, before: Callable[[], object]) -> None:
        """Put it at `file` with mode 0600, whole or not at all; `before` runs when it is ready to be put.

        So an account that the broker has taken is one whose password is on disk. Raises UserError.
        """
        said = {**self.model_dump(), "password": self.password.get_secret_value()}
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as out:
                json.dump(said, out, indent=2)
                out.flush()
                os.fsync(out.fileno())
            before()
            temporary.replace(file)
        except OSError as error:
            raise UserError(f"{file} can't be written: {os.strerror(error.errno or 0).lower()}") from None
        finally:
            temporary.unlink(missing_ok=True)


def read_enrolment(file: Path, *, role: Literal["device", "worker"] = "device") -> Enrolment:
    """Raises UserError where it can't be read, is not ours, or too many can read it (`is_private`)."""
    try:
        stat, text = file.stat(), file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "not text"
        raise UserError(f"the enrolment file {file} can't be read: {reason}") from None
    if not is_private(stat.st_mode, stat.st_uid):
        raise UserError(f"the enrolment file {file} can be read by others", hint=f"chmod 600 {file}")
    try:
        enrolment = Enrolment.model_validate_json(text)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) or each["type"] for each in error.errors())
        raise UserError(
            f"{file} is not what `spliteasy device enroll` writes (see {fields})", hint="enroll again"
        ) from None
    if enrolment.role != role:
        raise UserError(f"{file} is the enrolment of a {enrolment.role}, not of a {role}")
    return enrolment


def is_private(mode: int, owner: int) -> bool:
    """Return whether none but its owner can use the file; a group may read one that belongs to root.

    So secret volumes come into a container that does not run as root: 0440, of root and the pod's group.
    """
    return not mode & (0o037 if owner == 0 else 0o077)


async def connect_enrolled(
    file: Path,
    *,
    role: Literal["device", "worker"] = "device",
    patience_s: float = PATIENCE_S,
    heartbeat_s: int | None = None,
) -> Transport:
    """Connect as the file says; where that is refused, as a newer file says that comes in `patience_s`.

    Raises LinkRefused, LinkError and UserError.
    """
    from broker import connect

    enrolment = read_enrolment(file, role=role)
    try:
        return await connect(enrolment.url, heartbeat_s=heartbeat_s)
    except LinkRefused:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await _wait_for_another(file, enrolment)
        return await connect(read_enrolment(file, role=role).url, heartbeat_s=heartbeat_s)


async def _wait_for_another(file: Path, enrolment: Enrolment) -> None:
    while read_enrolment(file, role=enrolment.role) == enrolment:  # noqa: ASYNC110 - a file tells nobody
        await asyncio.sleep(POLL_S)


def certificates(file: Path) -> str:
    """The certificates in a PEM file, and nothing else of it. Raises UserError."""
    try:
        found = _CERTIFICATE.findall(file.read_text())
        for certificate in found:
            ssl.PEM_cert_to_DER_cert(certificate)
    except (OSError, ValueError) as error:
        raise UserError(f"the authority's certificates in {file} can't be read: {error}") from None
    if not found:
        raise UserError(f"{file} has no certificate", hint="a PEM file of the broker's authority")
    return "\n".join(found) + "\n"


def _to_der(pem: str) -> str:
    """Return the certificates as the AMQP library takes them: base64 of all in DER, one after another."""
    return b64encode(b"".join(map(ssl.PEM_cert_to_DER_cert, _CERTIFICATE.findall(pem)))).decode()
