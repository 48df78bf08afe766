"""Something that happens at one chosen line of the library: what a finalizer, a signal handler or Ctrl-C may do.

A test lets it happen at the first line that a thread executes, then in another run at the second, and so on until there
are no more: `at_each_line()` counts.
"""

import dis
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import batchify

PACKAGE = str(Path(batchify.__file__).parent)
# With all of them a call comes by as many lines as it can.
ALL_OPTIONS: dict[str, Any] = {
    "group_by": lambda _: "all",
    "weight": lambda _: 1,
    "max_weight": 2,
    "dedupe": True,
    "isolate": True,
    "concurrency": 2,
    "max_pending": 3,
    "on_batch": lambda _: None,
}


class Intruder:
    """Does something when its thread comes to the n-th line of the package, or of one of its files.

    Who sets its `trace` keeps that for as long as the thread may be traced. Python 3.11 makes a frame object before it
    calls a trace function. If a collection comes there, and this strikes in a finalizer and so ends the tracing, then
    Python calls what is freed, and crashes.
    """

    def __init__(self, at: int, action: Callable[[], object], file: str = "") -> None:
        self.at, self.action, self.line = at, action, 0
        self.where = ""  # at which it happened
        self.error: BaseException | None = None  # that the action raised, where it should not
        self._file = f"{PACKAGE}/{file}"

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._file) or self.where:
            return None
        if event == "line" and not _nothing_happens(frame):
            self.line += 1
            if self.line == self.at:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                try:
                    self.action()
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    self.error = error
        return self.trace

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        trace, before = self.trace, sys.gettrace()  # each `self.trace` is an object of its own
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)


class Lines:
    """Counts the runs of a test that has each one disturbed at the next line, until the end was reached undisturbed."""

    def __init__(self) -> None:
        self.tried = 0
        self.intruder: Intruder | None = None

    def intruder_doing(self, action: Callable[[], object], file: str = "") -> Intruder:
        """Return the one of this run."""
        self.intruder = Intruder(self.tried, action, file)
        return self.intruder

    @property
    def where(self) -> str:
        """The line at which this run was disturbed, for messages; empty if it came to its end before."""
        assert self.intruder is not None
        return self.intruder.where

    @property
    def text(self) -> str:
        """What stands there."""
        file, _, number = self.where.partition(":")
        return linecache.getline(f"{PACKAGE}/{file}", int(number or 0)).strip()


def at_each_line(*, at_least: int) -> Iterator[Lines]:
    """Yield the same thing for each run, until one comes to its end undisturbed; these must be so many."""
    lines = Lines()
    while lines.intruder is None or lines.where:
        lines.tried += 1
        yield lines
    assert lines.tried > at_least, "not every line was tried"


_nothing_happens_at: dict[tuple[int, int], bool] = {}  # by the id of the code, which the package keeps


def _nothing_happens(frame: FrameType) -> bool:
    """Whether this is no line to stop at: a mere `try:`, or the end of a `with _lock:` or the like.

    Before that, Python lets nothing happen (bpo-29988).
    """
    code, at = frame.f_code, frame.f_lasti
    found = _nothing_happens_at.get((id(code), at))
    if found is None:
        opcode = dis.opname[code.co_code[at]]
        text = linecache.getline(code.co_filename, frame.f_lineno)
        found = opcode == "NOP" or ("lock:" in text and not opcode.startswith(("LOAD_GLOBAL", "LOAD_FAST")))
        _nothing_happens_at[id(code), at] = found
    return found


def ctrl_c() -> None:
    raise KeyboardInterrupt
