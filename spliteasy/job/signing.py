"""Signed jobs: an operator's key (Ed25519) vouches for one version of a job, and so for every byte of it.

What is signed is a line that ends in the job's digest. The digest is of the manifest, and the manifest
lists name, size and SHA-256 of every part: no byte of a package can change without another digest.
Files are PEM as `openssl` writes them; in messages and enrolments a public key is 64 hexadecimal digits, a
signature 128.

Needs the package `cryptography` (extras `agent` and `worker`), and only where a key is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spliteasy.errors import JobError, UserError
from spliteasy.job.package import job_digest

_KEY = "an operator's key: Ed25519 in PEM, as `spliteasy keygen` writes it"


def new_key() -> tuple[bytes, bytes]:
    """A private and its public key, both PEM; the private one is not encrypted."""
    ed25519, serialization = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def check_signature(manifest: bytes, signature: str | None, public_key: str) -> None:
    """Return where the key signed the job that the manifest is of; nothing of it is parsed before.

    Raises JobError, and UserError where the library is missing.
    """
    digest = job_digest(manifest)
    if signature is None:
        raise JobError(
            f"the job (version {digest[:12]}) is not signed, and this device takes signed ones only",
            hint="the operator signs it with `spliteasy submit --sign KEY`",
        )
    ed25519, _ = _library()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(
            bytes.fromhex(signature), _statement(digest)
        )
    except (InvalidSignature, ValueError):
        raise JobError(
            f"the job (version {digest[:12]}) is not signed by the operator that enrolled this device",
            hint="it was altered on its way, or signed by another key; nothing of it was loaded",
        ) from None


def read_signer(file: Path) -> Callable[[str], str]:
    """Return a function that signs a job's digest with the private key in the file.

    Raises UserError where the file can't be read, others may read it, or it holds no such key.
    """
    ed25519, serialization = _library()
    try:
        key = serialization.load_pem_private_key(_read(file), password=None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is no private key: {_first_line(error)}", hint=_KEY) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UserError(f"{file} is a key of another kind", hint=_KEY)
    if file.stat().st_mode & 0o077:
        raise UserError(f"the key {file} can be read by others", hint=f"chmod 600 {file}")
    return lambda digest: key.sign(_statement(digest)).hex()


def read_public_key(file: Path) -> str:
    """The key as 64 hexadecimal digits. Raises UserError."""
    ed25519, serialization = _library()
    try:
        key = serialization.load_pem_public_key(_read(file))
    except ValueError as error:
        raise UserError(f"{file} is no public key: {_first_line(error)}", hint=f"{file}.pub?") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UserError(f"{file} is a key of another kind", hint=_KEY)
    raw: bytes = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return raw.hex()


def _statement(digest: str) -> bytes:
    """Return the bytes that are signed. Their words keep a signature of something else from passing for one
    of a job."""
    return f"spliteasy job 1\n{digest}\n".encode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"the key {file} can't be read: {reason}", hint="see `spliteasy keygen`") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:100] or "not PEM"


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise UserError(
            "signed jobs need the package cryptography", hint="pip install 'spliteasy[agent]'"
        ) from None
    return ed25519, serialization
