"""The state folder survives what befalls files: torn writes, flipped bits, full disks, rivals."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from broker.protocol.messages import MAX_ATTEMPT, MAX_STEP, AttemptRef, Open
from device_agent.state_folder import StateFolder
from spliteasy.errors import StateError
from spliteasy.job.package import job_digest, manifest_of
from spliteasy.runtime import durable_files

DIGEST = "ab" * 32
BOUND = {"job": DIGEST, "device": "phone-1", "fingerprint": "f1"}


def tensors(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "head/weight": torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "tail/bias": torch.randn(5, generator=generator),
        "tail/transposed": torch.randn(3, 5, generator=generator).t(),
        "tail/count": torch.tensor(step),
    }


def with_checkpoints(path: Path, *steps: int) -> Path:
    with StateFolder(path) as state:
        for step in steps:
            state.save_checkpoint(step, tensors(step))
    return path


def checkpoint_file(path: Path, step: int) -> Path:
    return path / "checkpoints" / f"{step:012d}"


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].stride() == right[name].stride() for name in left
    )


def test_a_checkpoint_comes_back_bit_for_bit_with_its_strides(tmp_path: Path) -> None:
    with_checkpoints(tmp_path / "new" / "state", 0, 7)
    with StateFolder(tmp_path / "new" / "state") as state:
        assert state.held() == (0, 7)
        assert same(state.load_checkpoint(7), tensors(7))
        assert same(state.load_checkpoint(0), tensors(0))
        with pytest.raises(StateError, match="no whole checkpoint of step 5"):
            state.load_checkpoint(5)
    assert (tmp_path / "new" / "state").stat().st_mode & 0o077 == 0


def test_a_checkpoint_torn_anywhere_is_skipped(tmp_path: Path) -> None:
    with_checkpoints(tmp_path, 1, 2)
    whole = checkpoint_file(tmp_path, 2).read_bytes()
    cuts = {*range(120), *range(120, len(whole), 37), len(whole) - 1}
    for length in cuts:
        checkpoint_file(tmp_path, 2).write_bytes(whole[:length])
        with StateFolder(tmp_path) as state:
            assert state.held() == (1,), length


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    with_checkpoints(tmp_path, 1, 2)
    whole = checkpoint_file(tmp_path, 2).read_bytes()
    for place in range(0, len(whole), 23):
        checkpoint_file(tmp_path, 2).write_bytes(
            whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        )
        with StateFolder(tmp_path) as state:
            assert state.held() == (1,), place
    checkpoint_file(tmp_path, 2).write_bytes(whole + b"\0")
    with StateFolder(tmp_path) as state:
        assert state.held() == (1,)


def test_bits_that_flip_while_the_folder_is_open_are_noticed_too(tmp_path: Path) -> None:
    with StateFolder(with_checkpoints(tmp_path, 1)) as state:
        raw = bytearray(checkpoint_file(tmp_path, 1).read_bytes())
        raw[-1] ^= 1
        checkpoint_file(tmp_path, 1).write_bytes(raw)
        with pytest.raises(StateError, match="no whole checkpoint of step 1"):
            state.load_checkpoint(1)


def test_a_checkpoint_under_another_steps_name_is_skipped(tmp_path: Path) -> None:
    with_checkpoints(tmp_path, 1, 2)
    checkpoint_file(tmp_path, 2).rename(checkpoint_file(tmp_path, 3))
    with StateFolder(tmp_path) as state:
        assert state.held() == (1,)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    with_checkpoints(tmp_path, 1)
    left = [tmp_path / ".tmp-00", tmp_path / "checkpoints" / ".tmp-01", tmp_path / ".tmp-02" / "x"]
    (tmp_path / ".tmp-02").mkdir()
    for path in left:
        path.write_bytes(b"half")
    with StateFolder(tmp_path) as state:
        assert state.held() == (1,)
    assert not any(path.exists() for path in left)


def test_pruning_keeps_what_the_server_may_fall_back_to_and_a_short_history(tmp_path: Path) -> None:
    with StateFolder(with_checkpoints(tmp_path, 0, 10, 20, 30, 40)) as state:
        assert state.prune(15, 1) == (10, 20, 40)
        assert state.prune(25, 2) == (20, 40)
        state.save_checkpoint(50, state.load_checkpoint(40))
        assert state.prune(50, 2) == (40, 50)
        state.drop_after(40)
        state.save_checkpoint(30, state.load_checkpoint(40))
        assert state.prune(3, 1) == (30, 40)
        assert state.prune(40, 1) == (40,)
    with StateFolder(tmp_path) as state:
        assert state.held() == (40,)


def test_a_rewind_drops_the_newer_checkpoints_for_good(tmp_path: Path) -> None:
    with StateFolder(with_checkpoints(tmp_path, 0, 10, 20)) as state:
        assert state.drop_after(10) == (0, 10)
    with StateFolder(tmp_path) as state:
        assert state.held() == (0, 10)


# Attempts -----------------------------------------------------------------------------------------


def test_attempts_only_grow_and_never_repeat_their_nonce(tmp_path: Path) -> None:
    seen = []
    for above in (0, 0, 9, 3):
        with StateFolder(tmp_path) as state:
            attempt = state.raise_attempt(above)
            assert state.attempt == attempt
            seen.append(attempt)
    assert [attempt.number for attempt in seen] == [1, 2, 10, 11]
    assert len({attempt.nonce for attempt in seen}) == 4


def test_a_number_that_nobody_can_have_got_to_is_refused_and_not_written(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        first = state.raise_attempt()
        for above in (MAX_ATTEMPT, MAX_STEP):
            with pytest.raises(StateError, match="made the number up"):
                state.raise_attempt(above)
        assert state.attempt == first
        assert state.raise_attempt(MAX_ATTEMPT - 1).number == MAX_ATTEMPT
    with pytest.raises(ValidationError):
        Open(
            session="toy.phone-1",
            attempt=AttemptRef(number=MAX_ATTEMPT + 1, nonce="0" * 16),
            digest="0" * 64,
            held=(0,),
        )


def test_a_damaged_attempt_is_as_good_as_none(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        state.raise_attempt(5)
        raw = bytearray((tmp_path / "attempt").read_bytes())
        raw[-3] ^= 1
        (tmp_path / "attempt").write_bytes(raw)
        assert state.attempt is None
        assert state.raise_attempt(0).number == 1


# What the folder is of ----------------------------------------------------------------------------


def test_a_folder_stays_with_its_job_device_and_data(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        state.bind(**BOUND)
    for change, told in (
        ({"job": "cd" * 32}, "is of another job: version abababababab, not cdcdcdcdcdcd (give another"),
        ({"device": "phone-2"}, "is of device phone-1, not phone-2"),
        ({"fingerprint": "f2"}, "the data set of device phone-1 is not the one"),
    ):
        with StateFolder(tmp_path) as state, pytest.raises(StateError) as caught:
            state.bind(**{**BOUND, **change})
        assert told in str(caught.value)
        assert "delete" in str(caught.value)
        assert "\n" not in str(caught.value)
    with StateFolder(tmp_path) as state:
        state.bind(**BOUND)


def test_a_damaged_binding_is_told_and_not_replaced(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        state.bind(**BOUND)
    (tmp_path / "binding").write_bytes((tmp_path / "binding").read_bytes()[:-1])
    with pytest.raises(StateError, match="binding is damaged"):
        StateFolder(tmp_path)


def test_a_second_agent_is_refused_until_the_first_leaves(tmp_path: Path) -> None:
    with StateFolder(tmp_path), pytest.raises(StateError, match="is in use by another agent"):
        StateFolder(tmp_path)
    StateFolder(tmp_path).close()


def test_the_job_is_kept_and_a_damaged_one_is_as_good_as_none(tmp_path: Path) -> None:
    parts = {"spec.json": b"{}", "head.json": b"[]"}
    manifest = manifest_of("job", {**parts, "body.json": b"the server's"})
    with StateFolder(tmp_path) as state:
        assert state.job_parts() is None
        state.save_job(manifest, parts)
        assert state.job_parts() == (manifest, parts)
        state.bind(job=job_digest(manifest), device="phone-1", fingerprint="f1")
        with pytest.raises(StateError, match="is of another job"):
            state.save_job(manifest_of("other", parts), parts)
        (tmp_path / "job" / "head.json").write_bytes(b"{}")
        assert state.job_parts() is None
        state.save_job(manifest, parts)
        assert state.job_parts() == (manifest, parts)
    assert hashlib.sha256(manifest).hexdigest() == job_digest(manifest)


# Disks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    state = StateFolder(with_checkpoints(tmp_path, 1))
    first = state.raise_attempt()

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_then_full(path: Path, *chunks: bytes, private: bool = False) -> None:
        path.write_bytes(chunks[0][:3])
        full()

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(durable_files, "_write", half_then_full)
        else:
            patch.setattr(os, "fsync", full)
        for act in (
            lambda: state.save_checkpoint(2, tensors(2)),
            lambda: state.save_checkpoint(1, tensors(2)),
            state.raise_attempt,
            lambda: state.bind(**BOUND),
            lambda: state.save_job(b"{}", {}),
            lambda: state.save_ends(tensors(2)),
        ):
            with pytest.raises(StateError, match="No space left") as caught:
                act()
            assert "free some space" in str(caught.value)
    assert state.held() == (1,)
    assert same(state.load_checkpoint(1), tensors(1))
    assert state.attempt == first
    assert state.binding is None
    assert not list(tmp_path.rglob(".tmp-*"))
    state.save_checkpoint(2, tensors(2))
    assert state.held() == (1, 2)
    state.close()


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="can't be opened: Not a directory"):
        StateFolder(tmp_path / "file" / "state")
