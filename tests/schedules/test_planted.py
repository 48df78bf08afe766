"""A bug planted in the package is found, so that finding none means something.

Each is planted by changing the text of a function; if the text to change is no longer there, the test fails.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest

tool = pytest.importorskip("interleave_test")  # needs Python 3.12

from batchify import _threads  # noqa: E402
from batchify._buffer import Buffer  # noqa: E402
from batchify._threads import ItemFuture, ThreadBatch, ThreadBatcher  # noqa: E402

from . import scenarios  # noqa: E402
from .conftest import Table  # noqa: E402
from .controlled import PACKAGE, Seldom, explore  # noqa: E402


@dataclass
class Planted:
    """A bug: text to change in a function, and the scenario that must find it."""

    what: str
    owner: Any
    function: str
    changes: list[tuple[str, str]]
    scenario: Callable[[], None]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        original = getattr(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(original))
        for old, new in self.changes:
            assert source.count(old) == 1, f"{self.what}: cannot be planted, {self.function}() has changed:\n{source}"
            source = source.replace(old, new)
        # In the directory of the package, or the scheduler would not stop at its lines.
        code = compile(source, f"{PACKAGE}/planted.py", "exec")
        made: dict[str, Any] = {}
        exec(code, sys.modules[original.__module__].__dict__, made)
        with patch.object(self.owner, self.function, made[self.function]):
            yield


PLANTED = [
    Planted(
        "the flush thread is not woken",
        ThreadBatcher,
        "_wake_locked",
        [("    _ring(self._bell)\n", "")],
        scenarios.full_batch,
    ),
    Planted(
        "call() asks outside the lock whether it is closed",
        ThreadBatcher,
        "call",
        [
            (
                "        with _lock:\n"
                "            if self._buffer.closed or self._refuses:\n"
                "                self._check_open_locked(refuses=self._refuses)\n",
                "        self._check_open_locked(refuses=self._refuses)\n        with _lock:\n",
            )
        ],
        scenarios.first_call_and_close,
    ),
    Planted(
        "submit() asks outside the lock whether it is closed",
        ThreadBatcher,
        "_put",
        [
            (
                "    with _lock:\n"
                "        now = monotonic()\n"
                "        for call in calls:\n"
                "            self._check_open_locked(refuses=refuses)\n",
                "    self._check_open_locked(refuses=refuses)\n"
                "    with _lock:\n"
                "        now = monotonic()\n"
                "        for call in calls:\n",
            )
        ],
        scenarios.submitting_and_closing,
    ),
    Planted(
        "_wakes_at is set after the look at the buffer",
        ThreadBatcher,
        "_next",
        [
            ("        self._wakes_at = inf\n", ""),
            (
                "        self._wakes_at = min(wakes_at, others)\n",
                "    with _lock:\n        self._wakes_at = min(wakes_at, others)\n",
            ),
        ],
        scenarios.calls,
    ),
    Planted(
        "cancelled is counted without asking whether it is taken",
        ThreadBatcher,
        "withdraw",
        [("if waited:", "if True:")],
        scenarios.cancelling,
    ),
    Planted(
        "cancel() answers without asking whether it is taken",
        ItemFuture,
        "cancel",
        [
            ("super()", "super(ItemFuture, self)"),
            ("and batcher.withdraw(call)", "and (batcher.withdraw(call) or True)"),
        ],
        scenarios.cancelling,
    ),
    Planted(
        "the thread of the second first caller is kept too",
        ThreadBatcher,
        "_start_thread",
        [("if self._short or not (self._threads or self._buffer.closed):", "if not self._buffer.closed:")],
        scenarios.first_calls,
    ),
    Planted(
        "a thread that starts while it is closed is kept",
        ThreadBatcher,
        "_start_thread",
        [("if self._short or not (self._threads or self._buffer.closed):", "if not self._threads:")],
        scenarios.first_call_and_close,
    ),
    Planted(
        "a batch that finishes wakes nobody",
        ThreadBatch,
        "finish",
        [("batcher._wake_locked()", "pass")],
        scenarios.on_an_engine,
    ),
    Planted(
        "a batch finishes without the lock",
        ThreadBatch,
        "finish",
        [("with _lock:", "if True:")],
        scenarios.on_an_engine,
    ),
    Planted(
        "figures are changed without the lock",
        ThreadBatch,
        "answer",
        [("with _lock:\n        batcher._tally", "if True:\n        batcher._tally")],
        scenarios.reading_stats,
    ),
    Planted(
        "the flush thread looks at the buffer without the lock",
        ThreadBatcher,
        "_next",
        [("with _lock:", "if True:")],
        scenarios.calls,
    ),
    Planted(
        "flush() wakes nobody",
        ThreadBatcher,
        "flush",
        [("        self._wake_if_due_locked()\n", "")],
        scenarios.flushing,
    ),
    Planted(
        "a map does not hear that batch_size has changed",
        ThreadBatcher,
        "_map",
        [("        self._bells.add(bell)\n", "        pass\n")],
        scenarios.map_and_settings,
    ),
    Planted(
        "who waits for whom: the look and the note under two holds",
        _threads,
        "_blocked_on",
        [
            (
                "            for_itself = _needs(awaited, held)\n",
                "            for_itself = _needs(awaited, held)\n        with _lock:\n",
            )
        ],
        scenarios.calling_each_other,
    ),
    Planted(
        "what a dropped function holds is forgotten",
        ThreadBatcher,
        "__del__",
        [("        self.close(wait=False)\n", "        pass\n")],
        scenarios.dropping,
    ),
    Planted(
        "the idle flush thread keeps its function alive",
        _threads,
        "_flush_forever",
        [("or by __del__.\n                batcher = None\n", "or by __del__.\n                pass\n")],
        scenarios.dropping_idle,
    ),
    # Several flush threads
    Planted(
        "that a thread is short is not noted",
        ThreadBatcher,
        "_wake_locked",
        [("self._short = len", "self._short = False and len")],
        scenarios.two_at_once,
    ),
    Planted(
        "that a thread is short is not looked at",
        ThreadBatcher,
        "_after_the_lock",
        [("if not self._short or", "if True or")],
        scenarios.two_at_once,
    ),
    Planted(
        "that a thread is short is not looked at before a batch",
        ThreadBatcher,
        "_before_a_batch",
        [("    self._after_the_lock()\n", "")],
        scenarios.two_in_one_step,
    ),
    Planted(
        "a thread that is awake counts as asleep",
        ThreadBatcher,
        "_next",
        [("self._asleep.pop(ident, None)", "pass")],
        scenarios.two_at_once,
    ),
    Planted(
        "whoever takes a batch leaves the rest to nobody",
        ThreadBatcher,
        "_next",
        [
            (
                "                self._wakes_at = self._others_wake_at()\n                self._wake_if_due_locked()\n",
                "                pass\n",
            )
        ],
        scenarios.two_in_one_step,
    ),
    Planted(
        "who takes a batch does not look whether more is due",
        ThreadBatcher,
        "_next",
        [("_others_wake_at()\n                self._wake_if_due_locked()\n", "_others_wake_at()\n")],
        scenarios.two_in_one_step,
    ),
    Planted(
        "what comes while one thread runs is timed by nobody",
        ThreadBatcher,
        "_next",
        [("self._wakes_at = self._others_wake_at()", "self._wakes_at = -inf")],
        scenarios.timing_while_one_runs,
    ),
    Planted(
        "more threads are hired than may be",
        ThreadBatcher,
        "_wake_locked",
        [("len(self._threads) < self.options.concurrency", "True")],
        scenarios.three_for_two,
    ),
    Planted(
        "more batches run than may",
        ThreadBatcher,
        "_next",
        [("running >= self.options.concurrency or", "running > self.options.concurrency or")],
        scenarios.three_for_two_on_an_engine,
    ),
    Planted(
        "a thread that ends does not wake the next one",
        _threads,
        "_flush_forever",
        [("    _ring(bell)  # for the next one to end, or to look after what waits\n", "")],
        scenarios.closing_two,
    ),
    Planted(
        "a thread that ends with its function does not wake the next one",
        _threads,
        "_flush_forever",
        [("    _ring(bell)  # for the next one to end, or to look after what waits\n", "")],
        scenarios.dropping_idle_two,
    ),
    Planted(
        "a thread that is no longer needed leaves what it timed to nobody",
        _threads,
        "_flush_forever",
        [("    _ring(bell)  # for the next one to end, or to look after what waits\n", "")],
        scenarios.timing_for_an_engine,
    ),
    Planted(
        "all who finish a batch are taken for flush threads",
        ThreadBatch,
        "finish",
        [("looks = ident in batcher._threads and ident not in batcher._asleep", "looks = True")],
        scenarios.three_for_two_on_an_engine,
    ),
    Planted(
        "a flush thread ends while a batch may still have to be run again",
        ThreadBatcher,
        "_next",
        [(" or (ends and running > 0)", "")],
        scenarios.isolating_and_closing,
    ),
    # Room
    Planted(
        "nobody who waits for room is let in",
        Buffer,
        "_fill",
        [("while self._line and", "while False and")],
        scenarios.cancelling_for_room,
    ),
    Planted(
        "who leaves the line stays in it",
        Buffer,
        "remove",
        [("    self._line.pop(call, None)\n", "")],
        scenarios.leaving_before_there_is_room,
    ),
    Planted(
        "that nobody else could join makes nothing due",
        Buffer,
        "_enter",
        [("len(self._waiting) >= self._room or ", "")],
        scenarios.full_by_pending,
    ),
    Planted(
        "close() leaves those waiting who wait for room",
        ThreadBatcher,
        "close",
        [("    self._refuse_blocked()\n", "")],
        scenarios.closing_with_a_line,
    ),
    Planted(
        "call() asks outside the lock whether there is room",
        ThreadBatcher,
        "call",
        [
            (
                "        with _lock:\n"
                "            if self._buffer.closed or self._refuses:\n"
                "                self._check_open_locked(refuses=self._refuses)\n",
                "        self._check_open_locked(refuses=self._refuses)\n        with _lock:\n",
            )
        ],
        scenarios.refused_when_full,
    ),
    # Halves of batches that failed
    Planted(
        "halves are left to whoever comes, if there was room",
        ThreadBatch,
        "finish",
        [("(batcher._has_no_room or batcher._parts)", "batcher._has_no_room")],
        scenarios.isolating_with_room_on_an_engine,
    ),
    Planted(
        "a thread that sends halves does not see that there are more",
        ThreadBatcher,
        "_next",
        [("waits = len(self._buffer) > 0 or len(self._parts) > 0", "waits = len(self._buffer) > 0")],
        scenarios.isolating_on_an_engine,
    ),
    Planted(
        "halves are due only when something else is",
        ThreadBatcher,
        "_due_at",
        [("-inf if self._parts else ", "")],
        scenarios.isolating_with_two_that_wait,
    ),
    # Groups
    Planted(
        "a full group does not make a batch due",
        Buffer,
        "_note_if_full",
        [("            heappush(", "            (lambda *_: None)(")],
        scenarios.two_groups_and_one_full,
    ),
    Planted(
        "a group that was full is taken for full",
        Buffer,
        "_oldest_full",
        [(" and oldest.arrival <= arrival and self._is_full(group)", "")],
        scenarios.two_groups_and_leaving,
    ),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.what)
def test_a_planted_bug_is_found(planted: Planted, table: Table) -> None:
    strategies = (Seldom(), tool.PCTStrategy())
    count = 0
    with planted.in_place():
        for turn in range(40):
            result = explore(planted.scenario, schedules=50, seed=turn // 2, strategy=strategies[turn % 2])
            count += result.schedules_run
            failure = result.failure
            if failure is not None:
                found = "deadlock" if failure.exception is None else type(failure.exception).__name__
                table.append((planted.what, planted.scenario.__name__, count, found))
                assert failure.kind != "hang", "it is not under the control of the scheduler"
                return
    pytest.fail(f"not found under {count} schedules")
