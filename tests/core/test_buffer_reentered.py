"""A finalizer or a signal handler may use the buffer while the same thread is at any line of it: nothing is lost."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest

from .. import inside
from ..inside import Buffer, Options
from ..intruder import at_each_line
from .test_buffer import Entry, filled

pytestmark = pytest.mark.thread_unsafe(reason="traces its thread")

ALL_OPTIONS: dict[str, Any] = {"keys": "aba", "max_weight": 2.0, "max_pending": 3}
PLAIN_AND_ALL = pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])
FILE = Path(inspect.getfile(Buffer)).name


@pytest.mark.parametrize("step", ["add", "remove", "take", "due_at", "adapt"])
@pytest.mark.parametrize("entering", ["add", "remove", "take", "flush", "close", "due_at"])
@PLAIN_AND_ALL
def test_reentered_at_any_line_the_buffer_loses_nothing(step: str, entering: str, options: dict[str, Any]) -> None:
    for lines in at_each_line(at_least=2):
        buffer, (first, second, third) = filled(0.0, 0.0, 0.0, **options)
        late, other = Entry(8, first.group), Entry(9, second.group)
        taken: list[Entry] = []
        gone: list[bool] = []
        take = lambda: taken.extend((buffer.take(0.0) or ([], "full"))[0])  # noqa: B023, E731 - run at once
        steps: dict[str, Any] = {
            "add": lambda: buffer.add(other, 0.0),  # noqa: B023
            "remove": lambda: gone.append(buffer.remove(second)),  # noqa: B023
            "take": take,
            "due_at": lambda: buffer.due_at,  # noqa: B023
            "adapt": buffer.adapt,
        }
        entries: dict[str, Any] = {
            "add": lambda: buffer.add(late, 0.0),  # noqa: B023
            "remove": lambda: buffer.remove(first),  # noqa: B023
            "take": take,
            "flush": lambda: buffer.flush(0.0),  # noqa: B023
            "close": buffer.close,
            "due_at": lambda: buffer.due_at,  # noqa: B023
        }
        with lines.intruder_doing(entries[entering], FILE).on_this_thread():
            steps[step]()
        inside.check(buffer)
        buffer.close()
        while batch := buffer.take(0.0):
            taken += batch[0]
        expected = {first, second, third}
        if lines.where and entering == "remove":
            taken, expected = [call for call in taken if call is not first], expected - {first}
        if lines.where and entering == "add":
            expected |= {late}
        if step == "add":
            expected |= {other}
        if gone == [True]:  # else it was taken just before
            expected -= {second}
        assert len(taken) == len(expected)
        assert set(taken) == expected


@PLAIN_AND_ALL
def test_item_that_leaves_at_any_line_of_a_take_leaves_no_empty_batch(options: dict[str, Any]) -> None:
    for lines in at_each_line(at_least=5):
        buffer, (call,) = filled(0.0, **options)
        left: list[bool] = []
        with lines.intruder_doing(lambda: left.append(buffer.remove(call)), FILE).on_this_thread():  # noqa: B023
            taken = buffer.take(1.0)
        assert taken == (None if left == [True] else ([call], "timeout"))


def test_group_filled_at_any_line_of_the_search_for_full_groups_is_noted() -> None:
    for lines in at_each_line(at_least=10):
        buffer, entries = filled(0.0, 1.0, 1.0, keys="abb", batch_size=2, timeout=None)
        buffer.remove(entries[1])  # so it is listed, and not full any more
        late = Entry(9, entries[0].group)
        with lines.intruder_doing(lambda: buffer.add(late, 1.0), FILE).on_this_thread():  # noqa: B023
            _ = buffer.due_at
        inside.check(buffer)
        if lines.where:
            assert buffer.take(1.0) == ([entries[0], late], "full")


def test_group_emptied_at_any_line_as_it_is_noted_that_it_is_full_is_passed_over() -> None:
    for lines in at_each_line(at_least=5):
        buffer, entries = filled(0.0, 0.0, keys="aa", batch_size=3)
        inside.options_of(buffer).batch_size = 2
        leave = lambda: [buffer.remove(entry) for entry in entries]  # noqa: B023, E731
        with lines.intruder_doing(leave, FILE).on_this_thread():
            buffer.adapt()
        inside.check(buffer)
        assert (buffer.due_at == math.inf) == bool(lines.where)


def test_deadline_is_that_of_the_first_of_two_adds_where_one_interrupts_the_other() -> None:
    for lines in at_each_line(at_least=4):
        buffer: Buffer[Entry] = Buffer(Options(9, 1.0))
        due: list[float] = []
        intrude = lambda: due.append(buffer.add(Entry(1), 0.0))  # noqa: B023, E731
        with lines.intruder_doing(intrude, FILE).on_this_thread():
            due.append(buffer.add(Entry(0), 0.0))
        assert min(due) == 1.0


def test_change_while_the_oldest_item_is_looked_for_is_survived() -> None:
    buffer, _ = filled(5.0)
    inside.changes_as_it_is_looked_at(buffer)
    assert buffer.due_at == 6.0


def test_change_while_all_items_are_looked_at_for_a_new_batch_size_is_survived() -> None:
    buffer, entries = filled(5.0, 5.0, keys="ab", timeout=None)
    inside.options_of(buffer).batch_size = 1
    inside.changes_as_it_is_looked_at(buffer)
    buffer.adapt()
    assert [buffer.take(5.0), buffer.take(5.0)] == [([entries[0]], "full"), ([entries[1]], "full")]


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_failed_take_puts_all_items_back_in_order(taken: int) -> None:
    buffer, entries = filled(0.0, 0.0, 0.0, 0.0)
    inside.fails_as_it_hands_out(buffer, nth=taken)
    with pytest.raises(MemoryError):
        buffer.take(1.0)
    inside.options_of(buffer).batch_size = 4
    assert buffer.take(1.0) == (entries, "full")
