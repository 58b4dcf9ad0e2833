"""Signing a job: what a key vouches for, and files that hold no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from spliteasy.errors import JobError, UserError
from spliteasy.job.package import job_digest
from spliteasy.job.signing import check_signature, new_key, read_public_key, read_signer
from tests.simulation import toy

RSA = b"""-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf
9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END PUBLIC KEY-----
"""


def write_keys(folder: Path, name: str = "operator.key") -> tuple[Path, Path]:
    """A new private key and its public half, as files."""
    private, public = folder / name, folder / f"{name}.pub"
    for file, text in zip((private, public), new_key(), strict=True):
        file.write_bytes(text)
        file.chmod(0o600)
    return private, public


def test_a_signature_is_of_every_byte_of_the_manifest_and_of_one_key(tmp_path: Path) -> None:
    manifest = toy.job(toy.Variant()).manifest
    private, public = write_keys(tmp_path)
    signature, key = read_signer(private)(job_digest(manifest)), read_public_key(public)
    check_signature(manifest, signature, key)
    other = read_public_key(write_keys(tmp_path, "other.key")[1])
    for at in (0, len(manifest) // 2, len(manifest) - 1):
        altered = manifest[:at] + bytes([manifest[at] ^ 1]) + manifest[at + 1 :]
        with pytest.raises(JobError, match="not signed by the operator that enrolled this device"):
            check_signature(altered, signature, key)
    for wrong_signature, wrong_key in ((signature, other), ("0" * 128, key), (signature, "0" * 64)):
        with pytest.raises(JobError, match="not signed by the operator"):
            check_signature(manifest, wrong_signature, wrong_key)
    with pytest.raises(JobError, match="takes signed ones only"):
        check_signature(manifest, None, key)


def test_a_signature_of_the_bare_digest_is_none_of_the_job(tmp_path: Path) -> None:
    """A text that the key signed for other ends can't be passed off as a job's signature."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    manifest = toy.job(toy.Variant()).manifest
    private, public = write_keys(tmp_path)
    key = load_pem_private_key(private.read_bytes(), password=None)
    bare = key.sign(job_digest(manifest).encode()).hex()  # type: ignore[union-attr, call-arg]
    with pytest.raises(JobError):
        check_signature(manifest, bare, read_public_key(public))


def test_files_that_hold_no_such_key(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    with pytest.raises(UserError, match="can't be read: no such file"):
        read_signer(tmp_path / "none")
    with pytest.raises(UserError, match="is no private key"):
        read_signer(public)
    with pytest.raises(UserError, match="is no public key"):
        read_public_key(private)
    (tmp_path / "rsa").write_bytes(RSA)
    with pytest.raises(UserError, match="of another kind"):
        read_public_key(tmp_path / "rsa")
    private.chmod(0o640)
    with pytest.raises(UserError, match="read by others"):
        read_signer(private)
