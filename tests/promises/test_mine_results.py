"""Mine: a call is answered with the result for its own item.

n items in, n results out, in order; and what the function may return for them.
"""

import asyncio
import concurrent.futures
import itertools
import pickle
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchify import BatchError, MissingResultError, ResultCountError

from ..kit import KINDS, Coroutines, Kit, new_kit
from ..tools import in_threads, run_script

pytestmark = pytest.mark.usefixtures("no_noise")


# Order, and each to its own caller


@settings(deadline=None)
@given(
    items=st.lists(st.integers(), max_size=40),
    batch_size=st.integers(1, 9),
    timeout=st.sampled_from([0.0, None]),
    how=st.sampled_from(["call", "submit", "map"]),
    as_tuple=st.booleans(),
)
@pytest.mark.parametrize("kind", KINDS)
def test_results_keep_the_order_of_the_items(
    kind: str, items: list[int], batch_size: int, timeout: float | None, how: str, as_tuple: bool
) -> None:
    def negate(xs: list[int]) -> Any:
        return (tuple if as_tuple else list)(-x for x in xs)

    with new_kit(kind) as kit:
        f = kit(negate, batch_size=batch_size, timeout=timeout)
        if how == "map":
            results = list(kit.map(f, items))
        else:
            handles = (kit.starts if how == "call" else kit.submits)(f, items)
            kit.flush(f)
            results = kit.outcomes(handles)
        assert results == [-item for item in items]
        assert all(1 <= len(batch) <= batch_size for batch in kit.batches)
        assert all(size <= batch_size for size in f.stats.sizes)
        assert f.stats.answered == f.stats.accepted == len(items)


@settings(deadline=None, max_examples=60)
@given(
    items=st.lists(st.integers(0, 30), min_size=1, max_size=24),
    batch_size=st.integers(1, 9),
    bad=st.frozensets(st.integers(0, 30), max_size=3),
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_caller_gets_its_own_result_or_the_error_of_its_batch(
    kind: str, items: list[int], batch_size: int, bad: frozenset[int]
) -> None:
    batches: list[list[tuple[int, int]]] = []

    def negate(xs: list[tuple[int, int]]) -> list[int]:
        batches.append(list(xs))
        if any(item in bad for _, item in xs):
            raise ValueError(len(batches))
        return [-item for _, item in xs]

    with new_kit(kind) as kit:
        f = kit(negate, batch_size=batch_size, timeout=0.001)
        if kind == "threads":
            outcomes = in_threads(f, enumerate(items))  # all at once, by the real clock
        else:
            calls = kit.starts(f, enumerate(items))
            kit.move(0.001)
            outcomes = kit.outcomes(calls)
    assert sorted(itertools.chain(*batches)) == list(enumerate(items))
    for number, batch in enumerate(batches, 1):
        failed = any(item in bad for _, item in batch)
        for position, item in batch:
            outcome = outcomes[position]
            assert (outcome.args == (number,)) if failed else (outcome == -item)


# What the function may return


class Sized:
    """Has a length and iterates, and cannot be indexed."""

    def __init__(self, *entries: Any) -> None:
        self.entries = entries
        self.iterations = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        self.iterations += 1
        return iter(self.entries)


ALLOWED: dict[str, Callable[[], Any]] = {
    "list": lambda: ["x", "y"],
    "tuple": lambda: ("x", "y"),
    "sized": lambda: Sized("x", "y"),
    "values": lambda: {1: "x", 2: "y"}.values(),
    "keys": lambda: {"x": 1, "y": 2}.keys(),
    "mapping": lambda: {2: "y", 1: "x", 3: "z"},
    "own mapping": lambda: UserDict({2: "y", 1: "x"}),
    "iterator": lambda: iter(["x", "y"]),
    "generator": lambda: (letter for letter in "xy"),
    "map": lambda: map(str.lower, "XY"),
}


@pytest.mark.parametrize("form", ALLOWED)
def test_function_may_return_what_has_an_order_or_is_a_mapping(kit: Kit, form: str) -> None:
    assert kit.answers(lambda _: ALLOWED[form](), 1, 2) == ["x", "y"]


def test_returned_container_is_iterated_once(kit: Kit) -> None:
    returned = Sized("x", "y")
    assert kit.answers(lambda _: returned, 1, 2) == ["x", "y"]
    assert returned.iterations == 1


def test_none_is_a_result(kit: Kit) -> None:
    assert kit.answers(lambda _: [None, 0], 1, 2) == [None, 0]
    assert kit.answers(lambda _: {1: None, 2: 0}, 1, 2) == [None, 0]


def test_exception_among_the_results_is_raised_at_its_own_caller_only(kit: Kit) -> None:
    one, two = kit.answers(lambda _: [KeyError("no such row"), "y"], 1, 2)
    assert isinstance(one, KeyError)
    assert repr(one) == "KeyError('no such row')"
    assert two == "y"


class Table(Sized):
    """As a data frame: iterates over its columns."""

    columns = ("a", "b")


async def coroutine() -> list[int]:
    return [1, 2]


REFUSED: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "str": lambda: "xy",
    "bytes": lambda: b"xy",
    "set": lambda: {1, 2},
    "number": lambda: 7,
    "table": lambda: Table(1, 2),
    "coroutine": coroutine,
}


@pytest.mark.parametrize("form", REFUSED)
def test_return_value_that_cannot_be_results_is_a_type_error_of_every_caller(kit: Kit, form: str) -> None:
    one, two = kit.answers(lambda _: REFUSED[form](), 1, 2)
    assert type(one) is type(two) is TypeError
    assert one is not two


def test_type_error_of_a_return_value_says_what_is_allowed(kit: Kit) -> None:
    def function(items: list[int]) -> None:
        return None

    one, two = kit.answers(function, 1, 2)
    last = {
        "threads": "an iterator, or a thread-safe future of one of these",
        "coroutines": "or an iterator, asynchronous or not",
    }
    assert (
        str(one)
        == str(two)
        == (
            "function() returned None; it must return one result per item, in the same order: "
            f"a list or other sequence, a mapping from item to result, {last[kit.kind]}"
        )
    )


# How many


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("form", [list, tuple, lambda entries: Sized(*entries)], ids=["list", "tuple", "sized"])
def test_wrong_number_of_results_fails_every_caller(kit: Kit, count: int, form: Callable[[list[int]], Any]) -> None:
    outcomes = kit.answers(lambda _: form(list(range(count))), 1, 2)
    assert [type(outcome) for outcome in outcomes] == [ResultCountError, ResultCountError]


def test_wrong_number_of_results_has_a_message_with_both_numbers(kit: Kit) -> None:
    def function(items: list[int]) -> list[int]:
        return [1]

    one, two = kit.answers(function, 1, 2)
    expected = "function() returned 1 result for 2 items; it must return one result per item, in the same order"
    assert str(one) == str(two) == expected


def test_number_of_results_is_checked_without_assertions_too() -> None:
    script = (
        "from batchify import batched; print(type(batched(batch_size=1)(lambda _: []).submit(1).exception()).__name__)"
    )
    done = run_script(script, "-O")
    assert done.stdout.split() == ["ResultCountError"]


def test_container_with_a_wrong_len_fails_every_caller(kit: Kit) -> None:
    class SaysTwo(Sized):
        def __len__(self) -> int:
            return 2

    outcomes = kit.answers(lambda _: SaysTwo("x"), 1, 2)
    assert [type(outcome) for outcome in outcomes] == [ResultCountError] * 2


def test_container_that_never_ends_fails_every_caller(kit: Kit) -> None:
    class Endless(Sized):
        def __iter__(self) -> Iterator[Any]:
            return itertools.count()

    outcomes = kit.answers(lambda _: Endless("x", "y"), 1, 2)
    assert [type(outcome) for outcome in outcomes] == [ResultCountError] * 2


@pytest.mark.parametrize("attribute", ["__len__", "__iter__"])
def test_container_that_raises_fails_every_caller(kit: Kit, attribute: str) -> None:
    def refuse(self: object) -> Any:
        raise ZeroDivisionError

    broken = type("Broken", (Sized,), {attribute: refuse})("x", "y")
    outcomes = kit.answers(lambda _: broken, 1, 2)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 2


# Mappings


def test_mapping_without_the_item_fails_its_own_caller_only(kit: Kit) -> None:
    one, two = kit.answers(lambda _: {2: "y"}, 1, 2)
    assert type(one) is MissingResultError
    assert isinstance(one, LookupError)
    assert two == "y"


def test_missing_result_says_which_item_it_was(kit: Kit) -> None:
    one, _ = kit.answers(lambda _: {2: "y"}, 1, 2)
    assert (one.item, one.args) == (1, ("<lambda>() returned a mapping without a value for this item",))
    there_and_back = pickle.loads(pickle.dumps(one))
    assert (there_and_back.item, str(there_and_back)) == (1, str(one))
    f = kit(lambda xs, ys: {(1, 2): "y"}, batch_size=1)
    assert kit.outcome(kit.start(f, 3, 4)).item == (3, 4)


def test_mapping_is_asked_as_python_asks_it(kit: Kit) -> None:
    class Missing(dict[int, str]):
        def __missing__(self, item: int) -> str:
            if item == 3:
                raise ValueError(item)
            return f"made for {item}"

    assert kit.answers(lambda _: defaultdict(list, {2: ["y"]}), 1, 2) == [[], ["y"]]
    one, two, three = kit.answers(lambda _: Missing({2: "y"}), 1, 2, 3)
    assert [one, two, type(three)] == ["made for 1", "y", ValueError]


def test_mapping_and_an_item_without_a_hash_fail_its_own_caller_only(kit: Kit) -> None:
    one, two = kit.answers(lambda _: {2: "y"}, [1], 2)
    assert isinstance(one, TypeError)
    assert two == "y"


def test_mapping_and_an_item_whose_hash_exits_fail_its_own_caller_only(kit: Kit) -> None:
    class Exits:
        def __hash__(self) -> int:
            raise SystemExit

    one, two = kit.answers(lambda _: {2: "y"}, Exits(), 2)
    assert type(one) is BatchError
    assert two == "y"


# Items and results are the user's


def test_item_that_is_a_list_is_one_item(kit: Kit) -> None:
    assert kit.answers(lambda items: [len(items), items[1]], [1, 2, 3], [4]) == [2, [4]]


def test_function_may_keep_and_change_its_list(kit: Kit) -> None:
    kept: list[list[int]] = []

    def function(items: list[int]) -> list[int]:
        kept.append(items)
        results = [-item for item in items]
        items.clear()
        return results

    f = kit(function, batch_size=2)
    assert list(kit.map(f, [1, 2, 3, 4])) == [-1, -2, -3, -4]
    assert kept[0] is not kept[1]


class Untouchable:
    """Neither compared, hashed, tested for truth, measured nor printed."""

    def _refuse(self, *_: object) -> Any:
        raise AssertionError("an item or a result was touched")

    __eq__ = __ne__ = __lt__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = __format__ = _refuse
    __hash__ = __getitem__ = __contains__ = __copy__ = __deepcopy__ = __reduce_ex__ = _refuse
    __class__ = property(_refuse)


def test_items_and_results_are_never_looked_at(kit: Kit) -> None:
    items, results = [Untouchable(), Untouchable()], [Untouchable(), Untouchable()]
    f = kit(lambda _: results, batch_size=2, timeout=None)
    for future, result in zip(kit.submits(f, items), results, strict=True):
        assert kit.outcome(future) is result
    f = kit(lambda _: iter(results[:1]), batch_size=1)
    assert kit.outcome(kit.start(f, items[0])) is results[0]


def test_no_message_prints_an_item_or_a_result(kit: Kit) -> None:
    secret = "a secret"
    broken: list[Any] = [{}, [secret] * 3, secret, iter(())]
    for returned in broken:
        outcomes = kit.answers(lambda _: returned, secret, secret)  # noqa: B023 - run at once
        assert all(isinstance(outcome, Exception) and secret not in str(outcome) for outcome in outcomes)


def test_submit_returns_a_future_of_concurrent_futures_or_of_asyncio(kit: Kit) -> None:
    f = kit(batch_size=1)
    future = kit.submit(f, 1)
    assert isinstance(future, asyncio.Future if kit.kind == "coroutines" else concurrent.futures.Future)
    assert kit.outcome(future) == -1


def test_future_of_an_executor_returned_by_an_async_def_function_is_refused(coroutines: Coroutines) -> None:
    done: concurrent.futures.Future[list[int]] = concurrent.futures.Future()
    done.set_result([1])
    (error,) = coroutines.answers(lambda xs: done, 1)
    assert type(error) is TypeError
    assert "returned Future; it must return one result per item" in str(error)
