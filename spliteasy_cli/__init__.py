"""The command line: the only place that puts the parts together.

`main` runs one command and turns what it raises into a line for a person and an exit code:

    0    done, or stopped cleanly on request
    1    something failed that can pass, or a bug: a service manager starts the command again
    2    the same command would end so again until somebody mends something: a typo, wrong credentials, data
         that does not fit, a folder in use; no service manager starts it again
    130  stopped at once by a second Ctrl-C
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from spliteasy.errors import SplitEasyError, is_final
from spliteasy.runtime.descriptors import LACK_HINT, lack_of_descriptors

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` None: the process's own arguments."""
    from spliteasy_cli.app import app  # typer and rich take a moment that an import of us need not

    arguments = hoist(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with warnings.catch_warnings():
            if not debug:  # torch.export warns of torch's own deprecations, which no user can mend
                warnings.filterwarnings("ignore", module=r"torch\b")
            app(arguments, prog_name="spliteasy")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _explain(error, debug=debug)
    return 0


def hoist(argv: Sequence[str]) -> list[str]:
    """Move `--debug` and `--log-level LEVEL` to the front, so that they work behind the command too."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--debug" or word.startswith("--log-level="):
            front.append(word)
        elif word == "--log-level":
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return [*front, *rest]


def _explain(error: BaseException, *, debug: bool) -> int:
    """Print one line for an expected error, and a traceback for a bug or where it was asked for."""
    from spliteasy.observability.logs import redact

    leaves = list(_leaves(error))
    expected = all(isinstance(leaf, SplitEasyError | OSError) for leaf in leaves)
    if debug or not expected:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    for line in dict.fromkeys(map(_line, leaves)):
        print(f"error: {line}", file=sys.stderr)
    return 2 if expected and all(map(is_final, leaves)) else 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _line(error: BaseException) -> str:
    from spliteasy.observability.logs import redact

    if isinstance(error, SplitEasyError):
        text = str(error)
    elif isinstance(error, OSError) and lack_of_descriptors(error):
        text = f"this process has used up its file descriptors ({LACK_HINT})"
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        text = f"{type(error).__name__}: {error} (a bug of ours: please report the lines above)"
    return redact(" ".join(text.split()))
