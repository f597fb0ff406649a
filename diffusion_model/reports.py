"""What a command says beside its work: a report that cannot be made is said where it can be, and the work goes on.

    with reports.survived(run / "log.txt"):      # a line of a log, a row of metrics, a curve, a picture
        arrays.append_text(run / "log.txt", text)

`experiment.launch` runs every command inside `guarded`: what is printed for a reader who has left (`| head`) is dropped,
what a full disk or a broken stream refuses is lost, and a stream that was closed before the start (`2>&-`) is the null
device. A command that has lost a report does its work to the end and then has status 1; a reader who left changes nothing.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

_lost: dict[str, int] = {}  # what could not be written, how often


@contextlib.contextmanager
def survived(what: str | Path) -> Iterator[None]:
    """Around a report: an error is said the first time and counted, and the work goes on without the report."""
    try:
        yield
    except Exception as error:
        _lose(str(what), error)


def _lose(what: str, error: BaseException) -> None:
    _lost[what] = _lost.get(what, 0) + 1
    if _lost[what] == 1:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        print(f"{what} cannot be written ({' '.join(reason.split())}); the work goes on", file=sys.stderr, flush=True)


class Stream:
    """stdout or stderr of a command, which outlives its reader and its disk."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name = stream, name

    def write(self, text: str) -> int:
        """Write what can be written; letters that the stream's encoding lacks are escaped."""
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: OSError | ValueError) -> None:
        """From now on the null device takes what is written, and what is still in the buffer."""
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), self.stream.fileno())
        if not isinstance(error, BrokenPipeError):
            _lose(self.name, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guarded(command: Callable[[], int]) -> int:
    """Run a command behind streams that cannot end it; its status, or 1 where it is 0 and a report was lost."""
    _lost.clear()
    _open_streams()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Stream(before[0], "stdout"), Stream(before[1], "stderr")
    try:
        status = command()
        sys.stdout.flush()
        if _lost:
            files = ", ".join(what if times == 1 else f"{what} ({times} times)" for what, times in _lost.items())
            print(f"error: what could not be written is missing, all else is done: {files}", file=sys.stderr)
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = before
    return status or bool(_lost)


def _open_streams() -> None:
    """Give the null device the numbers of streams that were closed, so that no file gets them and what is printed with it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - as long as the process
