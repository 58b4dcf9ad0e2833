"""A device's state folder: what a restarted agent goes on from.

    lock                       held while an agent (or merge, or predict) uses the folder
    binding                    which job version, device and data set the folder is of
    secret                     what only this device knows: its ends, order and masks come from it
    ends                       the initial weights of head and tail that were drawn from the secret
    attempt                    the newest attempt, raised before it is used
    budget                     what the training spent of its privacy budget, under DP-SGD
    traffic                    bytes used by day, where the link is metered
    codecs                     which steps use which codecs, where the job lets the device choose
    job/                       the device's parts of the job
    checkpoints/000000000042   weights, buffers and optimizers of head and tail
    best/000000000042          the best checkpoint so far, where the job keeps it (`best_checkpoints.py`)

Every file is written beside its place, synced and renamed, readable by its owner alone, and carries a
checksum, so that it is whole or as good as absent. A backup is of the whole folder, the secret included.
Methods raise StateError, and then nothing has changed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from broker.protocol.messages import MAX_ATTEMPT, AttemptRef, Digest, Identifier, new_nonce
from device_agent.best_checkpoints import BestCheckpoints, file_name
from spliteasy.errors import JobError, PortableError, StateError, StateUnwritable, is_final
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.job.package import job_digest, read_package, write_package
from spliteasy.runtime.descriptors import LACK_HINT, lack_of_descriptors
from spliteasy.runtime.durable_files import remove_temporaries, sync_folder, write_file
from spliteasy.runtime.randomness import KEY_BYTES

MAGIC = b"spliteasy-state-1\n"
_CHECKSUM_BYTES = 32


def _prefix(step: int) -> bytes:
    """Return the bytes that a checkpoint's content begins with, so that a file under another's name is
    noticed."""
    return step.to_bytes(8, "little")


class Binding(BaseModel):
    """The training that a state folder belongs to. `job` is the digest of its version."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    job: Digest
    device: Identifier
    fingerprint: str
    previous: Digest | None = None
    """The version whose weights `job` went on from."""


class StateFolder:
    """The folder at `path`, made if absent, for this process alone until `close`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._checkpoints = self.path / "checkpoints"
        self._best = BestCheckpoints(self.path / "best")
        with self._problems_told("opened"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._take_lock()
        try:
            with self._problems_told("opened"):
                self._checkpoints.mkdir(mode=0o700, exist_ok=True)
                remove_temporaries(self.path)
                remove_temporaries(self._checkpoints)
                self._best.prepare()
                self._held = sorted(self._whole_checkpoints())
                self.binding = self._read_binding()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let another process use the folder. Everything is on disk already."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # The folder's training -------------------------------------------------------------------------

    def bind(self, *, job: str, device: str, fingerprint: str, new_data: bool = False) -> None:
        """Keep the folder to this job digest, device and data set; refuse any other.

        With `new_data` another data set takes the old one's place.
        """
        bound = self.binding
        if bound is None:
            self._bind(Binding(job=job, device=device, fingerprint=fingerprint))
            return
        if bound.job != job:
            versions = f"{bound.job[:12]}, not {job[:12]}"
            raise StateError(
                f"state folder {self.path} is of another job: version {versions}", hint=self._start_over
            )
        self.check_owner(device=device, fingerprint=fingerprint, new_data=new_data)
        if bound.fingerprint != fingerprint:
            self._bind(bound.model_copy(update={"fingerprint": fingerprint}))

    def check_owner(self, *, device: str, fingerprint: str, new_data: bool) -> None:
        """Refuse another device, and another data set unless it is to take the old one's place."""
        bound, start_over = self.binding, self._start_over
        assert bound is not None
        if bound.device != device:
            raise StateError(
                f"state folder {self.path} is of device {bound.device}, not {device}", hint=start_over
            )
        if bound.fingerprint != fingerprint and not new_data:
            raise StateError(
                f"the data set of device {device} is not the one that {self.path} was trained on",
                hint="go on from the trained weights with the data as it is now: --new-data; or bring the "
                f"old data back, {start_over}",
            )

    def hand_over(self, *, job: str, fingerprint: str, ends: Mapping[str, Tensor]) -> None:
        """Bind the folder to a version that goes on from its checkpoints; `ends` are its initial weights.

        The initial checkpoint goes: of the new version it is not one. A repeat changes nothing.
        """
        bound = self.binding
        assert bound is not None
        if bound.job == job:
            return
        self._delete([step for step in self._held if step == 0])
        self._drop_best(lambda _: True)
        self.save_ends({**(self.ends or {}), **ends})
        self.save_codecs(b"")
        self._bind(Binding(job=job, device=bound.device, fingerprint=fingerprint, previous=bound.job))

    def _bind(self, binding: Binding) -> None:
        self._write("binding", orjson.dumps(binding.model_dump()))
        self.binding = binding

    @property
    def _start_over(self) -> str:
        return f"give another --state folder, or delete {self.path} to start over"

    def secret(self, given: bytes | None = None) -> bytes:
        """The 32 bytes that only this device knows, made by the operating system at the first call.

        `given`: take these instead, which is for tests and for runs that have to be repeated.
        """
        path = self.path / "secret"
        kept = self._read(path)
        if kept is None and (self.binding is not None or path.exists()):
            why = "is damaged" if path.exists() else "has gone, or an older version began this training"
            raise StateError(
                f"{path} {why}: weights and order of this training can't be found without it",
                hint=f"bring back a copy of the whole folder, or delete {self.path} to start over",
            )
        if kept is None:
            kept = given or os.urandom(KEY_BYTES)
            self._write("secret", kept)
        if given is not None and kept != given:
            raise StateError(
                f"state folder {self.path} has another secret", hint="give another --state folder"
            )
        return kept

    @property
    def ends(self) -> dict[str, Tensor] | None:
        """Return what `save_ends` was given, or None before. Raises StateError where the file is damaged."""
        path = self.path / "ends"
        raw = self._read(path)
        if raw is None and (path.exists() or self._held):
            raise StateError(
                f"{path} is damaged or has gone, and weights are drawn once",
                hint=f"bring back a copy of the whole folder, or delete {self.path} to start over",
            )
        return None if raw is None else tensors_from_bytes(raw)

    def save_ends(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep the initial weights that were drawn; durable on return."""
        self._write("ends", tensors_to_bytes(tensors))

    def save_job(self, manifest: bytes, parts: Mapping[str, bytes]) -> None:
        """Keep the device's parts of the job, in place of what is there. A bound folder keeps its own."""
        if self.binding is not None and job_digest(manifest) != self.binding.job:
            raise StateError(f"state folder {self.path} is of another job")
        folder = self.path / "job"
        with self._problems_told("written"):
            if folder.exists():
                shutil.rmtree(folder)
        try:
            write_package(folder, manifest, parts)
        except JobError as error:
            raise StateUnwritable(error.message, hint="free some space on the disk") from error

    @property
    def job_signature(self) -> str | None:
        """Return what `save_signature` was given last, or None before it, or where the file is damaged."""
        raw = self._read(self.path / "signature")
        return None if raw is None else raw.decode()

    def save_signature(self, signature: str) -> None:
        """Keep the operator's signature of the job beside it."""
        self._write("signature", signature.encode())

    def job_parts(self) -> tuple[bytes, dict[str, bytes]] | None:
        """Manifest and parts of the job kept here; None where there is none, or a damaged one."""
        try:
            return read_package(self.path / "job")
        except (JobError, PortableError):
            return None

    # Attempts --------------------------------------------------------------------------------------

    @property
    def attempt(self) -> AttemptRef | None:
        """The newest attempt; None before the first.

        Also None where the file is damaged: the server then refuses the number, and says the newest.
        """
        raw = self._read(self.path / "attempt")
        with suppress(ValidationError):
            return None if raw is None else AttemptRef.model_validate_json(raw)
        return None

    def raise_attempt(self, above: int = 0) -> AttemptRef:
        """Make a new attempt, numbered above the last one and above `above`; durable on return.

        Raises StateError where there is no such number: no honest device gets there.
        """
        last = self.attempt
        number = max(above, last.number if last else 0) + 1
        if number > MAX_ATTEMPT:
            raise StateError(
                f"attempt {number - 1} is the last that there can be, and no training gets there: something "
                "made the number up",
                hint="let an operator run `spliteasy session forget`, and give another --state folder",
            )
        attempt = AttemptRef(number=number, nonce=new_nonce())
        self._write("attempt", orjson.dumps(attempt.model_dump()))
        return attempt

    # Codecs ----------------------------------------------------------------------------------------

    @property
    def codecs(self) -> bytes | None:
        """Return what `save_codecs` was given last, or None before it, or where the file is damaged."""
        return self._read(self.path / "codecs")

    def save_codecs(self, choices: bytes) -> None:
        """Keep the choice of codecs; durable on return."""
        self._write("codecs", choices)

    # Privacy budget --------------------------------------------------------------------------------

    @property
    def budget(self) -> bytes | None:
        """Return what `save_budget` was given last, or None before. Raises StateError where it has gone."""
        path = self.path / "budget"
        raw = self._read(path)
        if raw is None and (path.exists() or self._held):
            raise StateError(
                f"{path} is damaged or has gone, and what the training spent is not known without it",
                hint=f"bring back a copy of the whole folder, or delete {self.path} to start over",
            )
        return raw

    def save_budget(self, ledger: bytes) -> None:
        """Keep what was spent; durable on return."""
        self._write("budget", ledger)

    # Traffic ---------------------------------------------------------------------------------------

    @property
    def traffic(self) -> bytes | None:
        """Return what `save_traffic` was given last, or None before it, or where the file is damaged."""
        return self._read(self.path / "traffic")

    def save_traffic(self, used: bytes) -> None:
        """Keep what was used; durable on return."""
        self._write("traffic", used)

    # Checkpoints -----------------------------------------------------------------------------------

    def held(self) -> tuple[int, ...]:
        """Steps whose checkpoint is whole, ascending."""
        return tuple(self._held)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the checkpoint of `step`, over one that is there."""
        self._write(f"checkpoints/{file_name(step)}", _prefix(step), tensors_to_bytes(tensors))
        self._held = sorted({*self._held, step})

    def load_checkpoint(self, step: int) -> dict[str, Tensor]:
        """Return what `save_checkpoint` was given. Raises StateError where there is none, or it is
        damaged."""
        return self._load(
            self._checkpoint_path(step), step, hint="start the agent again: it goes on from another one"
        )

    def _load(self, path: Path, step: int, *, hint: str) -> dict[str, Tensor]:
        raw = self._read(path)
        if raw is None or not raw.startswith(_prefix(step)):
            raise StateError(f"{self.path} has no whole checkpoint of step {step}", hint=hint)
        return tensors_from_bytes(raw[len(_prefix(step)) :])

    def prune(self, durable_step: int, history: int) -> tuple[int, ...]:
        """Delete what is no longer needed; returns the steps kept.

        Kept are the newest checkpoint that the server can't fall behind (the oldest, if it could fall
        behind all of them), the next one after it, which takes its place in time however fast the
        training is, and the `history` newest ones.
        """
        safe = [step for step in self._held if step <= durable_step] or self._held[:1]
        coming = [step for step in self._held if step > durable_step]
        keep = {*safe[-1:], *coming[:1], *self._held[-history:]}
        self._delete(step for step in self._held if step not in keep)
        with self._problems_told("written"):
            self._best.prune(oldest=self._held[0])
        return self.held()

    def drop_after(self, step: int) -> tuple[int, ...]:
        """Delete checkpoints newer than `step`, durably: another course begins there. Returns the kept."""
        self._delete(held for held in self._held if held > step)
        self._drop_best(lambda best: best > step)
        return self.held()

    def _delete(self, steps: Iterable[int]) -> None:
        doomed = list(steps)
        if not doomed:
            return
        with self._problems_told("written"):
            for step in doomed:
                self._checkpoint_path(step).unlink(missing_ok=True)
                self._held.remove(step)
            sync_folder(self._checkpoints)

    def _checkpoint_path(self, step: int) -> Path:
        return self._checkpoints / file_name(step)

    def _whole_checkpoints(self) -> Iterator[int]:
        for path in self._checkpoints.iterdir():
            if path.name.isdecimal():
                step = int(path.name)
                raw = self._read(path)
                if raw is not None and raw.startswith(_prefix(step)):
                    yield step

    # The best evaluation ---------------------------------------------------------------------------

    def keep_best(self, step: int) -> None:
        """Keep the checkpoint of `step`, which there must be, until a better one is kept and nothing can go
        back to before that; durable on return."""
        with self._problems_told("written"):
            self._best.keep(self._checkpoint_path(step), step)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """Return the checkpoint that `keep_best` was told to keep. Raises StateError where it has gone."""
        return self._load(self._best.path(step), step, hint="bring back a copy of the whole folder")

    def go_back(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Let `tensors` be the checkpoint of `step`, and the only one. A kill in between leaves others."""
        self.save_checkpoint(step, tensors)
        self._delete(held for held in self._held if held != step)
        self._drop_best(lambda _: True)

    def _drop_best(self, is_doomed: Callable[[int], bool]) -> None:
        with self._problems_told("written"):
            self._best.drop(is_doomed)

    # Files -----------------------------------------------------------------------------------------

    def _take_lock(self) -> BinaryIO:
        file = open(self.path / "lock", "ab")  # noqa: SIM115  held until close
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StateError(
                f"state folder {self.path} is in use by another agent",
                hint="stop that one first, or give another --state folder and device",
            ) from None
        return file

    def _read_binding(self) -> Binding | None:
        path = self.path / "binding"
        raw = self._read(path)
        if raw is None and not path.exists():
            return None
        try:
            return Binding.model_validate_json(raw or b"")
        except ValidationError as error:
            raise StateError(
                f"{path} is damaged", hint=f"delete {self.path} to start over, or bring back a copy of it"
            ) from error

    def _write(self, name: str, *chunks: bytes) -> None:
        hasher = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
        for chunk in chunks:
            hasher.update(chunk)
        with self._problems_told("written"):
            write_file(self.path / name, MAGIC, hasher.digest(), *chunks, private=True)

    def _read(self, path: Path) -> bytes | None:
        """Return what was written to `path`, or None where it is absent or not what was written."""
        with self._problems_told("read"):
            try:
                raw = memoryview(path.read_bytes())
            except FileNotFoundError:
                return None
        start = len(MAGIC) + _CHECKSUM_BYTES
        found = hashlib.blake2b(raw[start:], digest_size=_CHECKSUM_BYTES).digest()
        return bytes(raw[start:]) if raw[:start] == MAGIC + found else None

    @contextmanager
    def _problems_told(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (StateError if is_final(error) else StateUnwritable)(
                f"state folder {self.path} can't be {done}: {error.strerror or error}",
                hint="free some space on the disk, then start again; nothing is lost"
                if full
                else LACK_HINT
                if lack_of_descriptors(error)
                else None,
            ) from error
