"""A local certificate authority and a server's certificate from it, by the `openssl` command.

For the local stack and the tests. Who trusts `ca.pem` trusts what `ca.key` signs: both stay in one folder,
the keys readable by this user only.
"""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from spliteasy.errors import UserError

HOSTS = ("localhost", "127.0.0.1")
DAYS = 825
_EXTENSIONS = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files of a TLS server: its authority's certificate, its own, and its key."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a client's context: this authority only, the server's name checked, TLS 1.2 and up."""
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def make_certificates(folder: Path, *, hosts: Sequence[str] = HOSTS, days: int = DAYS) -> TlsFiles:
    """The authority in `folder` and a certificate for `hosts`; made where they are missing.

    Raises UserError where the `openssl` command is missing or fails.
    """
    folder = folder.absolute()
    files = TlsFiles(ca=folder / "ca.pem", certificate=folder / "server.pem", key=folder / "server.key")
    if files.certificate.exists():
        return files
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = ",".join(f"{'IP' if _is_address(host) else 'DNS'}:{host}" for host in hosts)
    (folder / "openssl.cnf").write_text(_EXTENSIONS.format(names=names))
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "openssl.cnf"]
    if not files.ca.exists():
        _openssl(folder, "req", "-x509", *made, "-extensions", "authority", "-days", str(10 * DAYS),
                 "-subj", "/CN=SplitEasy local authority", "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    _openssl(folder, "req", "-new", *made, "-subj", f"/CN={hosts[0]}",
             "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
    _openssl(folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
             "-CAcreateserial", "-days", str(days), "-extfile", "openssl.cnf", "-extensions", "server",
             "-out", "server.pem")  # fmt: skip
    return files


def _openssl(folder: Path, *arguments: str) -> None:
    try:
        run = subprocess.run(
            ["openssl", *arguments], cwd=folder, capture_output=True, text=True, umask=0o077, check=False
        )
    except FileNotFoundError:
        raise UserError("the openssl command is not installed", hint="apt-get install openssl") from None
    if run.returncode:
        raise UserError(f"openssl {arguments[0]} failed: {' '.join(run.stderr.split())[-300:]}")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
