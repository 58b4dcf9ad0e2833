"""Every error that SplitEasy raises, as one tree.

    SplitEasyError
    ├── UserError             what a person can mend: exit code 2, one line, no traceback
    │   ├── JobError          a job file or package that is wrong
    │   │   ├── CutError      a cut that does not exist or can't be right
    │   │   └── NeedsNewer    a package that needs what this version does not know
    │   ├── DataError         data that does not fit the job
    │   └── StateError        a device's state folder that does not fit, or is in use
    │       └── StateUnwritable   (retriable) the folder can't be used now: its disk is full
    ├── PortableError         a segment or job package that is malformed or not allowed
    ├── WireError             bytes from the wire that are not a message
    ├── LinkError             (retriable) the broker can't be reached, or the connection was lost
    │   ├── LinkDeferred      the broker answered no, for a reason that can pass
    │   ├── LinkRefused       (not retriable) the broker answered no: credentials, permissions, arguments
    │   │   └── AccountRefused    it does not know the account, or the password is wrong
    │   ├── AccountGone       the connection was lost because this account was deleted
    │   └── Unroutable        no queue took the frame
    ├── StoreError
    │   ├── StoreUnavailable  (retriable) the store can't be reached
    │   │   └── StoreDeferred it answered: not now
    │   ├── StoreFull         (retriable) the store has no room
    │   ├── SealBroken        a sealed value was altered or moved in the store
    │   └── BlobMissing       a value that lies beside the store is not there, or is damaged
    ├── KeyMissing            a value in the store is not sealed with a key that this process has
    ├── OutOfMemory           (retriable) this process gets no more memory
    ├── RemoteError           the other side answered ERROR
    └── ReplayMismatch        a replayed step gave other bits than it had given before

An error for a person says what was wrong, where, and what to do (`hint`). Which errors end a process, and how
long the others are waited out, is the table in docs/operations.md; `broker.transport.patience` decides it.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final

from spliteasy.runtime.readable import shown

_FINAL_ERRNOS: Final = {
    errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
    errno.ENOTDIR, errno.EPERM,
}  # fmt: skip
"""The system answers with these for a path that is wrong, or for rights that are missing."""

FINAL_CODES: Final = {"bad-tensor", "not-finite"}
"""ERRORs of a worker that the same request of the same device would meet again."""


def is_final(error: BaseException) -> bool:
    """Return whether the same command would end with this error again until a person mends something."""
    if isinstance(error, RemoteError):
        return error.code in FINAL_CODES
    if isinstance(error, UserError | LinkRefused):
        return not error.retriable
    return isinstance(error, OSError) and error.errno in _FINAL_ERRNOS


class SplitEasyError(Exception):
    """Base of all. `retriable` says whether the same call may succeed later."""

    retriable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Text of others is escaped, so that a terminal, a log, a dead letter and a page show it as it is.
        message = shown(message, lines=True)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else shown(hint, lines=True)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(SplitEasyError):
    """Something that the user can mend."""


class JobError(UserError):
    """A job file or job package that is wrong."""


class CutError(JobError):
    """A cut that does not exist, or can't be right."""


class NeedsNewer(JobError):
    """A job package that needs `needs`, which this version does not know."""

    def __init__(self, job: str, needs: tuple[str, ...]) -> None:
        super().__init__(
            f"job {job} needs {', '.join(needs)}, which this version does not know", hint="upgrade this side"
        )
        self.job, self.needs = job, needs


class PublicEnds(JobError):
    """A job whose head and tail don't begin with weights that only the device knows."""


class Hijacked(UserError):
    """A worker that seems to train a device's head for a purpose of its own."""


class DataError(UserError):
    """Data that does not fit the job."""


class StateError(UserError):
    """A device's state folder that does not fit, or is in use."""


class StateUnwritable(StateError):
    """A device's state folder that can't be read or written now: a full disk, a disk that fails."""

    retriable: ClassVar[bool] = True


class PortableError(SplitEasyError):
    """A segment or job package that is malformed, too large, or asks for what is not allowed."""


class WireError(SplitEasyError):
    """Bytes from the wire that are not a message of ours."""


class LinkError(SplitEasyError):
    """The broker can't be reached, or the connection was lost."""

    retriable: ClassVar[bool] = True


class LinkDeferred(LinkError):
    """The broker answered no, for a reason that can pass: its virtual host is down, a limit is reached."""


class LinkRefused(LinkError):
    """The broker answered no: credentials, permissions, arguments. Somebody has to mend that first."""

    retriable: ClassVar[bool] = False


class AccountRefused(LinkRefused):
    """The broker does not know the account, or the password is wrong."""


class AccountGone(LinkError):
    """The connection was lost because this account was deleted: what refuses it next is final."""


class Unroutable(LinkError):
    """No queue took the frame: the queue is gone, or nobody has declared it yet."""


class StoreError(SplitEasyError):
    """The store failed."""


class StoreUnavailable(StoreError):
    """The store can't be reached, or did not answer in time: the outcome of a call is unknown."""

    retriable: ClassVar[bool] = True


class StoreDeferred(StoreUnavailable):
    """The store answered: not now. It is loading, a replica, or has too many clients."""


class StoreFull(StoreError):
    """The store has no room: nothing was written."""

    retriable: ClassVar[bool] = True


class SealBroken(StoreError):
    """A sealed value does not open: it was altered or moved in the store. Nothing of it is used."""

    def __init__(self, session: str, step: int, what: str) -> None:
        super().__init__(
            f"session {session}: {what} of step {step} does not open; it was altered or moved in the store",
            hint=f"restore the store from a backup, or run `spliteasy session forget {session}`",
        )
        self.session, self.step = session, step


class BlobMissing(StoreError):
    """A large value that the store names is not among the blobs beside it, or is damaged."""


class KeyMissing(SplitEasyError):
    """A value in the store is sealed with a key that this process lacks, or not sealed where it has to be."""


class OutOfMemory(SplitEasyError):
    """A computation found no memory: there may be some later. What it was at is in no state to go on from."""

    retriable = True


class RemoteError(SplitEasyError):
    """The other side answered ERROR with `code`."""

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ReplayMismatch(SplitEasyError):
    """A step replayed from the log gave another gradient than it had given before."""

    def __init__(self, session: str, step: int, *, logged: str, replayed: str) -> None:
        super().__init__(
            f"session {session}: step {step} replayed to digest {replayed}, the log says {logged}",
            hint="the workers differ in hardware, torch version or thread count; run workers of one kind",
        )
        self.session, self.step, self.logged, self.replayed = session, step, logged, replayed


class OutputsMismatch(ReplayMismatch):
    """The device went on from other outputs of the body than this worker's forward gives."""

    def __init__(self, session: str, step: int, *, device: str, own: str) -> None:
        SplitEasyError.__init__(
            self,
            f"session {session}: the device took step {step} from outputs of digest {device}, this worker's "
            f"forward gives {own}",
            hint="the workers differ in hardware, torch version or thread count; run workers of one kind",
        )


class UnlikeWorker(SplitEasyError):
    """This worker computes other bits than the machine that a session was trained on: others may not."""

    def __init__(self, session: str, *, stored: str, own: str) -> None:
        super().__init__(
            f"session {session} was computed on a machine unlike this worker's: {stored}; here: {own}",
            hint='start a worker like that one, or submit the job with durability.exactness = "tolerance"',
        )
