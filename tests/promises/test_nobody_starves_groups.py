"""Nobody starves: between groups, the batch whose oldest item has waited longest goes first.

Only items of one group (`group_by`) share a batch. A group leaves nothing behind, and a key that raises, or takes long,
is the matter of its own call alone.
"""

import gc
import threading
from collections import Counter
from typing import Any

import pytest

from .. import inside
from ..kit import Kit, Threads, echo

# Which batch goes first


def test_group_by_lets_only_equal_groups_share_a_batch(kit: Kit) -> None:
    f = kit(echo, batch_size=3, timeout=None, group_by=lambda x: x % 2)
    assert kit.outcomes(kit.submits(f, [1, 2, 3, 4, 5, 6])) == [1, 2, 3, 4, 5, 6]
    assert kit.batches == [[1, 3, 5], [2, 4, 6]]
    kit.consistent(f)


def test_group_whose_oldest_item_waited_longest_goes_first(kit: Kit) -> None:
    f = kit(echo, gated=True, batch_size=2, timeout=0.0, group_by=lambda x: x // 10)
    busy = kit.busy(f, 0)
    handles = kit.submits(f, [11, 21, 31, 22, 12, 23, 32])
    kit.go_on(10)
    kit.outcomes([busy, *handles])
    assert kit.batches == [[0], [11, 12], [21, 22], [31, 32], [23]]


def test_group_that_is_full_goes_before_an_older_one_that_is_not_due(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, group_by=lambda x: x // 10)
    old = kit.submit(f, 11)
    assert kit.outcomes(kit.submits(f, [21, 22])) == [21, 22]
    assert not old.done()
    kit.flush(f)
    assert kit.outcome(old) == 11
    assert f.stats.reasons == {"flush": 1, "full": 1}


def test_group_that_a_smaller_batch_size_makes_full_goes_at_once(kit: Kit) -> None:
    f = kit(batch_size=4, timeout=None, group_by=lambda x: x % 2)
    handles = kit.submits(f, [1, 0, 2])
    f.batch_size = 2
    assert kit.outcomes(handles[1:]) == [0, -2]
    assert not handles[0].done()
    kit.close(f)
    assert kit.outcome(handles[0]) == -1


def test_group_with_a_steady_stream_starves_no_other(kit: Kit) -> None:
    f = kit(echo, gated=True, batch_size=2, timeout=0.0, group_by=lambda x: x < 0)
    handles = [kit.busy(f, 1), kit.submit(f, -1)]
    for number in range(2, 12, 2):
        handles += kit.submits(f, [number, number + 1])  # the other group is always full
        kit.go_on()
        kit.until_runs(number // 2 + 1)
    assert kit.batches[1] == [-1]
    kit.go_on(10)
    kit.outcomes(handles)


# Nothing is left behind


def test_empty_group_leaves_nothing_behind(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, group_by=lambda x: x // 2)
    assert kit.outcomes(kit.submits(f, range(40))) == list(range(40))
    lone = kit.submits(f, range(100, 200, 2))
    for future in lone[:25]:
        assert future.cancel()
    kit.flush(f)
    del future
    assert kit.outcomes(lone[25:]) == list(range(150, 200, 2))
    del lone
    gc.collect()
    kit.until(lambda: inside.groups_kept(f) == 0)  # the thread may be about to end its batch
    kit.consistent(f)


def test_groups_that_come_and_go_leave_nothing_behind_while_others_come(kit: Kit) -> None:
    f = kit(echo, batch_size=1, group_by=lambda x: x)
    for number in range(200):
        assert kit.outcome(kit.submit(f, number)) == number
    kit.until_idle(f)
    gc.collect()
    kit.until(lambda: inside.groups_kept(f) <= 1)


# Keys


@pytest.mark.parametrize("how", ["raises", "unhashable", "exits"])
def test_error_of_group_by_is_that_calls_error(kit: Kit, how: str) -> None:
    def group_of(x: int) -> Any:
        if x == 0 and how != "unhashable":
            raise ZeroDivisionError if how == "raises" else GeneratorExit
        return [] if x == 0 else 1

    expected = {"raises": ZeroDivisionError, "unhashable": TypeError, "exits": GeneratorExit}[how]
    f = kit(echo, batch_size=2, timeout=None, group_by=group_of)
    first = kit.submit(f, 1)
    with pytest.raises(expected):
        kit.submit(f, 0)
    assert type(kit.outcome(kit.start(f, 0))) is expected
    assert kit.outcomes([first, kit.submit(f, 2)]) == [1, 2]
    assert f.stats.accepted == 2
    kit.consistent(f)


def test_error_of_comparing_keys_is_that_calls_error(kit: Kit) -> None:
    class Hostile:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    f = kit(echo, batch_size=2, timeout=None, group_by=lambda x: Hostile() if x else 1)
    first = kit.submit(f, 0)
    error = kit.outcome(kit.start(f, 1))  # the keys collide
    assert type(error) is ZeroDivisionError
    assert kit.outcomes([first, kit.submit(f, 0)]) == [0, 0]
    kit.consistent(f)


def test_key_that_takes_long_to_hash_holds_up_nobody(threads: Threads) -> None:
    answered = threading.Event()

    class Slow:
        def __hash__(self) -> int:
            answered.wait()
            return 1

        def __eq__(self, other: object) -> bool:
            answered.wait()
            return self is other

    outcomes: list[int] = []
    f = threads(echo, batch_size=1, group_by=lambda x: Slow() if x else 0)
    slow = threading.Thread(target=lambda: outcomes.append(f(1)))
    slow.start()
    assert f(0) == 0
    answered.set()
    slow.join()
    assert outcomes == [1]


class Key:
    """A group, a constant or an item. All hash alike, and each notes when it is called under a lock of ours."""

    def __init__(self, number: int, noted: list[str]) -> None:
        self.number, self.noted = number, noted

    def note(self, what: str) -> None:
        if inside.holds_a_lock():
            self.noted.append(what)

    def __hash__(self) -> int:
        self.note("hash")
        return 1

    def __eq__(self, other: object) -> bool:
        self.note("eq")
        return isinstance(other, Key) and self.number == other.number

    def __del__(self) -> None:
        self.note("del")


def with_model(texts: list[Any], *, model: Any = "small") -> list[Any]:
    return [(text, model) for text in texts]


@pytest.mark.parametrize("as_what", ["group", "constant", "item"])
def test_keys_and_items_and_on_batch_are_never_called_under_a_lock(kit: Kit, as_what: str) -> None:
    noted: list[str] = []
    reports: list[bool] = []
    f: Any
    if as_what == "constant":
        f = kit(with_model, batch_size=2, timeout=None)
    elif as_what == "group":
        f = kit(echo, batch_size=2, timeout=None, group_by=lambda x: Key(x // 4, noted))
    else:
        f = kit(
            echo, batch_size=2, timeout=None, dedupe=True, on_batch=lambda report: reports.append(inside.holds_a_lock())
        )

    def submit(number: int) -> Any:
        if as_what == "constant":
            return kit.submit(f, number, model=Key(number // 4, noted))
        return kit.submit(f, Key(number // 4, noted) if as_what == "item" else number)

    for _ in range(3):
        handles = [submit(number) for number in range(32)]
        kit.flush(f)
        kit.outcomes(handles)
        del handles
        lone = [submit(number) for number in range(0, 400, 4)]
        for future in lone[::2]:
            future.cancel()
        f.batch_size = 3
        kit.flush(f)
        f.batch_size = 2
        kit.outcomes(lone[1::2])
        del lone, future
        gc.collect()
    kit.close(f)
    kit.made.clear()
    f = None
    gc.collect()
    assert Counter(noted) == Counter()
    assert bool(reports) == (as_what == "item")
    assert not any(reports)
