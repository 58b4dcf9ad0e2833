"""Text is readable: that of others can't change a terminal, and our own is in plain sentences."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from pydantic import ValidationError

from broker import decode, encode
from broker.protocol import messages as m
from server_worker.store import WorkerInfo
from server_worker.store.records import decode_worker, encode_worker
from spliteasy.errors import DataError, RemoteError
from spliteasy.observability import logs
from spliteasy.runtime.readable import shown

EVIL = "a\x1b[2J\x9b31mb\x7f\u202ec\u2028d\r\ne\x00\u200bf"
SAFE = r"a\x1b[2J\x9b31mb\x7f\u202ec\u2028d\x0d\x0ae\x00\u200bf"


def test_what_is_not_shown_is_written_out_and_the_rest_is_left_alone() -> None:
    assert shown(EVIL) == SAFE
    assert shown(SAFE) == SAFE, "once"
    for text in ("", "plain", "Größe 雪 🙂 é", "C:\\x1b"):
        assert shown(text) == text
    assert shown("a\n\tb\r", lines=True) == "a\n\tb\\x0d"


@pytest.mark.parametrize("kind", ["BUSY", "REOPEN", "ERROR"])
def test_what_a_worker_says_is_escaped_where_it_enters(kind: str) -> None:
    attempt = m.AttemptRef(number=1, nonce="a" * 16)
    replies: dict[str, m.Message] = {
        "BUSY": m.Busy(answers="a" * 16, retry_after_s=1.0, reason="MARK"),
        "REOPEN": m.Reopen(session="j.d", answers="a" * 16, attempt=attempt, reason="MARK"),
        "ERROR": m.Error(session="j.d", answers="a" * 16, code="internal", message="MARK", hint="MARK"),
    }
    raw = {**m.to_header(replies[kind])}
    said = json.loads(json.dumps(raw).replace("MARK", json.dumps(EVIL)[1:-1]))
    read = m.from_header(said, ())
    texts = [value for name, value in read if name in ("reason", "message", "hint")]
    assert texts
    assert set(texts) == {SAFE}
    again = decode(b"".join(bytes(part) for part in [encode(read)]))
    assert again == read, "an escaped text stays as it is"
    long = m.from_header(json.loads(json.dumps(raw).replace("MARK", json.dumps("\x1b" * 2000)[1:-1])), ())
    assert decode(encode(long)) == long, "and within its length"


def test_names_with_such_characters_are_refused() -> None:
    attempt = m.AttemptRef(number=1, nonce="a" * 16)
    with pytest.raises(ValidationError, match="not shown"):
        m.Eval(session="j.d", attempt=attempt, step=1, samples=1, codec="fp\x1b[32")
    with pytest.raises(ValidationError, match="not shown"):
        m.Body(session="j.d", answers="a" * 16, attempt=attempt, fence=1, step=1, names=("w\x1b",))


def test_errors_and_logs_show_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RemoteError(EVIL, code="internal", hint=EVIL)
    for text in (str(error), error.message, error.hint or ""):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "\x1b" not in str(DataError(f"the folder {EVIL} is of no class"))
    for as_json in (True, False):
        stream = io.StringIO()
        logs.configure("info", stream=stream, as_json=as_json)
        structlog.get_logger("x").info(EVIL, name=EVIL)
        written = stream.getvalue().rstrip("\n")
        assert "\x1b[2J" not in written
        assert "\u202e" not in written


def test_what_another_worker_wrote_is_escaped() -> None:
    info = WorkerInfo(
        worker="w",
        started_at=0.0,
        shards=(1,),
        sessions=0,
        steps=0,
        host=EVIL,
        pid=1,
        state=EVIL,
        jobs=(),
        owner="",
    )
    read = decode_worker(encode_worker(info))
    assert (read.host, read.state) == (SAFE, SAFE)


# Documentation in the code is written in whole sentences -------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
FRAGMENT = re.compile(
    r"(What|Which|Who|Whom|Whose|Whoever|Whether|Of|Under|How|Than|Kept|As|Where|For|From)\b"
)
"""A docstring that begins so has a subordinate clause and no main one. ("Where X, do Y" is rare: turn it.)"""
PRIVATE = re.compile(r"\b(anew|at hand|[Ww]hoever|of one's own)\b")
"""Words that a stranger stumbles over: say again, current, anybody who, and whose it is."""
SWEPT = ("spliteasy", "broker", "device_agent", "server_worker", "spliteasy_cli", "deploy", "benchmarks")


def documented(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Return line and text of each docstring: of modules, classes, functions, and of what is assigned."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, each in zip([None, *body], body, strict=False):
            text = (
                each.value.value if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) else 0
            )
            if isinstance(text, str) and (before is None or isinstance(before, ast.Assign | ast.AnnAssign)):
                yield each.lineno, text.strip()


def unreadable(source: str) -> list[int]:
    """Return the lines of docstrings that are fragments, and of comments and strings with private words."""
    lines = [line for line, text in documented(ast.parse(source)) if FRAGMENT.match(text)]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) and PRIVATE.search(token.string):
            lines.append(token.start[0])
    return lines


def test_docstrings_are_sentences_in_plain_words() -> None:
    found = [
        f"{name}:{line}"
        for part in SWEPT
        for path in sorted((ROOT / part).rglob("*.py"))
        for name in [path.relative_to(ROOT).as_posix()]
        for line in unreadable(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""What it does."""', [1]),
        ('def f():\n    """Whether it holds."""', [2]),
        ('X = 1\n"""Of each session."""', [2]),
        ("# the step at hand", [1]),
        ('say("begin anew")', [1]),
        ('"""Whatever comes is taken."""\nX = 1\n"""The bound of each session."""', []),
    ],
)
def test_fragments_and_private_words_are_found(source: str, lines: list[int]) -> None:
    assert unreadable(source) == lines
