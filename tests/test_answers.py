"""Who gets which result? n items in, n results out, in order; and what the function may return or raise."""

import gc
import itertools
import threading
import traceback
import weakref
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchify import BatchError, MissingResultError, ResultCountError

from .tools import batched, in_threads, run_script, until


def answers(function: Callable[[list[Any]], Any], *items: Any) -> list[Any]:
    """Run one batch of these items; return each one's result, or its exception."""
    with batched(batch_size=len(items), timeout=None)(function) as f:
        futures = [f.submit(item) for item in items]
        return [future.exception() or future.result() for future in futures]


@given(items=st.lists(st.integers(), max_size=40), batch_size=st.integers(1, 9), as_tuple=st.booleans())
@settings(deadline=None)
def test_length_and_order_are_kept(items: list[int], batch_size: int, as_tuple: bool) -> None:
    def negate(xs: list[int]) -> Any:
        assert 1 <= len(xs) <= batch_size
        return (tuple if as_tuple else list)(-x for x in xs)

    with batched(batch_size=batch_size)(negate) as f:
        assert list(f.map(items)) == [-item for item in items]


@given(
    items=st.lists(st.integers(0, 30), min_size=1, max_size=24),
    batch_size=st.integers(1, 9),
    bad=st.frozensets(st.integers(0, 30), max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_every_caller_gets_its_own_result_or_the_error_of_its_batch(
    items: list[int], batch_size: int, bad: frozenset[int]
) -> None:
    batches: list[list[tuple[int, int]]] = []

    def negate(xs: list[tuple[int, int]]) -> list[int]:
        batches.append(list(xs))
        if any(item in bad for _, item in xs):
            raise ValueError(len(batches))
        return [-item for _, item in xs]

    with batched(batch_size=batch_size, timeout=0.001)(negate) as f:
        outcomes = in_threads(f, enumerate(items))
    assert sorted(itertools.chain(*batches)) == list(enumerate(items))
    for number, batch in enumerate(batches, 1):
        failed = any(item in bad for _, item in batch)
        for position, item in batch:
            outcome = outcomes[position]
            assert (outcome.args == (number,)) if failed else (outcome == -item)


# What it may return


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


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


ALLOWED: dict[str, Callable[[], Any]] = {
    "list": lambda: ["x", "y"],
    "tuple": lambda: ("x", "y"),
    "sized": lambda: Sized("x", "y"),
    "view": lambda: {1: "x", 2: "y"}.values(),
    "mapping": lambda: {2: "y", 1: "x", 3: "z"},
    "own mapping": lambda: UserDict({2: "y", 1: "x"}),
    "iterator": lambda: iter(["x", "y"]),
    "generator": lambda: (letter for letter in "xy"),
    "map": lambda: map(str.lower, "XY"),
    "future of list": lambda: done(["x", "y"]),
    "future of mapping": lambda: done({1: "x", 2: "y"}),
    "future of iterator": lambda: done(iter("xy")),
}


@pytest.mark.parametrize("form", ALLOWED)
def test_may_return(form: str) -> None:
    assert answers(lambda _: ALLOWED[form](), 1, 2) == ["x", "y"]


def test_a_container_is_iterated_once() -> None:
    returned = Sized("x", "y")
    answers(lambda _: returned, 1, 2)
    assert returned.iterations == 1


class Table(Sized):
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
def test_may_not_return(form: str) -> None:
    outcomes = answers(lambda _: REFUSED[form](), 1, 2)
    assert [type(outcome) for outcome in outcomes] == [TypeError, TypeError]
    assert outcomes[0] is not outcomes[1]


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize(
    "form",
    [list, tuple, lambda entries: Sized(*entries), done],
    ids=["list", "tuple", "sized", "future"],
)
def test_wrong_number_of_results_fails_every_caller(count: int, form: Callable[[list[int]], Any]) -> None:
    outcomes = answers(lambda _: form(list(range(count))), 1, 2)
    assert [type(outcome) for outcome in outcomes] == [ResultCountError, ResultCountError]


def test_the_length_is_checked_without_assertions_too() -> None:
    script = (
        "from batchify import batched; print(type(batched(batch_size=1)(lambda _: []).submit(1).exception()).__name__)"
    )
    done = run_script(script, "-O")
    assert done.stdout.split() == ["ResultCountError"]


def test_length_that_lies_fails_every_caller() -> None:
    class Liar(Sized):
        def __len__(self) -> int:
            return 2

    assert [type(outcome) for outcome in answers(lambda _: Liar("x"), 1, 2)] == [ResultCountError] * 2


def test_missing_value_fails_its_own_caller() -> None:
    one, two = answers(lambda _: {2: "y"}, 1, 2)
    assert isinstance(one, MissingResultError)
    assert isinstance(one, LookupError)
    assert two == "y"


def test_a_mapping_is_not_added_to() -> None:
    returned = defaultdict(list, {2: ["y"]})
    one, two = answers(lambda _: returned, 1, 2)
    assert isinstance(one, MissingResultError)
    assert two == ["y"]
    assert list(returned) == [2]


def test_none_is_a_result() -> None:
    assert answers(lambda _: [None, 0], 1, 2) == [None, 0]
    assert answers(lambda _: {1: None, 2: 0}, 1, 2) == [None, 0]


def test_item_that_cannot_be_looked_up_fails_its_own_caller() -> None:
    one, two = answers(lambda _: {2: "y"}, [1], 2)
    assert isinstance(one, TypeError)
    assert two == "y"


def test_an_exception_among_the_results_is_raised_at_its_own_caller() -> None:
    one, two = answers(lambda _: [KeyError("no such row"), "y"], 1, 2)
    assert isinstance(one, KeyError)
    assert one.args == ("no such row",)
    assert two == "y"


def test_an_item_that_is_a_list_is_one_item() -> None:
    assert answers(lambda items: [len(items), items[1]], [1, 2, 3], [4]) == [2, [4]]


def test_the_function_may_keep_and_change_its_list() -> None:
    kept: list[list[int]] = []

    def function(items: list[int]) -> list[int]:
        kept.append(items)
        results = [-item for item in items]
        items.clear()
        return results

    with batched(batch_size=2)(function) as f:
        assert list(f.map([1, 2, 3, 4])) == [-1, -2, -3, -4]
    assert kept[0] is not kept[1]


class Hostile:
    """Neither compared, hashed, tested for truth, measured nor printed."""

    def _refuse(self, *_: object) -> Any:
        raise AssertionError("an item or a result was touched")

    __eq__ = __ne__ = __lt__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = __format__ = _refuse
    __hash__ = __getitem__ = __contains__ = __copy__ = __deepcopy__ = __reduce_ex__ = _refuse
    __class__ = property(_refuse)


def test_items_and_results_are_never_looked_at() -> None:
    items, results = [Hostile(), Hostile()], [Hostile(), Hostile()]
    with batched(batch_size=2, timeout=None)(lambda _: results) as f:
        futures = [f.submit(item) for item in items]
        for future, result in zip(futures, results, strict=True):
            assert future.result() is result
    with batched(batch_size=1)(lambda _: iter(results[:1])) as f:
        assert f(items[0]) is results[0]


def test_no_message_prints_an_item_or_a_result() -> None:
    secret = "a secret"
    broken: list[Any] = [{}, [secret] * 3, secret, iter(())]
    for returned in broken:
        outcomes = answers(lambda _: returned, secret, secret)  # noqa: B023 - run at once
        assert all(isinstance(outcome, Exception) and secret not in str(outcome) for outcome in outcomes)


@pytest.mark.parametrize("attribute", ["__len__", "__iter__"])
def test_container_that_raises_fails_every_caller(attribute: str) -> None:
    def refuse(self: object) -> Any:
        raise ZeroDivisionError

    broken = type("Broken", (Sized,), {attribute: refuse})("x", "y")
    assert [type(outcome) for outcome in answers(lambda _: broken, 1, 2)] == [ZeroDivisionError] * 2


def test_a_container_that_never_ends_fails_every_caller() -> None:
    class Endless(Sized):
        def __iter__(self) -> Iterator[Any]:
            return itertools.count()

    assert [type(outcome) for outcome in answers(lambda _: Endless("x", "y"), 1, 2)] == [ResultCountError] * 2


def test_an_item_whose_hash_exits_fails_its_own_caller() -> None:
    class Exits:
        def __hash__(self) -> int:
            raise SystemExit

    one, two = answers(lambda _: {2: "y"}, Exits(), 2)
    assert type(one) is BatchError
    assert two == "y"


# Generators: each result as soon as it is yielded


def test_a_yielded_result_is_delivered_at_once() -> None:
    go_on = threading.Semaphore(0)

    def function(items: list[int]) -> Iterator[int]:
        for item in items:
            yield -item
            go_on.acquire()

    with batched(batch_size=2, timeout=None)(function) as f:
        one, two = f.submit(1), f.submit(2)
        assert one.result() == -1
        assert not two.done()
        assert (f.stats.answered, f.stats.running, f.stats.in_flight) == (1, 1, 1)
        go_on.release()
        assert two.result() == -2
        go_on.release()


def test_a_yielded_result_is_not_kept_until_the_next_one() -> None:
    watched: list[weakref.ref[Thing]] = []
    asked_again, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def thing() -> Thing:
        made = Thing()
        watched.append(weakref.ref(made))
        return made

    def function(items: list[int]) -> Iterator[Thing]:
        for _ in items:
            yield thing()
            asked_again.release()
            go_on.acquire()

    with batched(batch_size=2, timeout=None)(function) as f:
        one, two = f.submit(1), f.submit(2)
        one.result()
        del one
        asked_again.acquire()
        assert watched[0]() is None
        go_on.release(2)
        two.result()


def test_a_generator_that_ends_early_fails_those_who_still_wait() -> None:
    one, two, three = answers(lambda _: iter(["x"]), 1, 2, 3)
    assert one == "x"
    assert isinstance(two, ResultCountError)
    assert isinstance(three, ResultCountError)


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
def test_a_generator_that_raises_fails_those_who_still_wait(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def function(_: list[int]) -> Iterator[str]:
        yield "x"
        raise error

    one, two, three = answers(function, 1, 2, 3)
    assert one == "x"
    assert type(two) is type(three) is (error if issubclass(error, Exception) else BatchError)
    assert not caplog.records  # since they were told


def test_what_stands_behind_the_last_yield_runs() -> None:
    ended = threading.Event()

    def function(items: list[int]) -> Iterator[int]:
        yield from items
        ended.set()

    assert answers(function, 1, 2) == [1, 2]
    assert ended.is_set()  # answers() closes, which waits for it


def test_one_yield_too_many_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    results = iter("uvwxyz")
    assert answers(lambda _: results, 1, 2) == ["u", "v"]
    assert [record.getMessage() for record in caplog.records] == [
        "<lambda>() yielded more results than the 2 items it was given"
    ]
    assert not caplog.records[0].exc_info  # else it would end in "NoneType: None"
    assert list(results) == ["x", "y", "z"]  # it is not asked any more


def test_an_error_behind_the_last_yield_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def function(items: list[int]) -> Iterator[int]:
        yield from items
        raise SystemExit

    assert answers(function, 1, 2) == [1, 2]
    (record,) = caplog.records
    assert record.getMessage() == "function() raised after its last result"
    assert record.exc_info is not None
    assert record.exc_info[0] is SystemExit


# Futures: batches that leave the process


def test_the_flush_thread_does_not_wait_for_a_future_but_the_next_batch_does() -> None:
    made: list[Future[Any]] = []

    def function(items: list[int]) -> Future[Any]:
        made.append(Future())
        return made[-1]

    with batched(batch_size=2, timeout=None)(function) as f:
        futures = [f.submit(item) for item in range(4)]
        while not made:
            f.flush()
        assert f.stats.in_flight == 1
        made[0].set_result(["a", "b"])
        assert [future.result() for future in futures[:2]] == ["a", "b"]
        while len(made) < 2:
            f.flush()
        made[1].set_exception(ValueError("no"))
        assert [type(future.exception()) for future in futures[2:]] == [ValueError, ValueError]


def test_a_pool_takes_the_batches() -> None:
    with ThreadPoolExecutor(2) as pool, batched(batch_size=4)(lambda items: pool.submit(list, items)) as f:
        assert in_threads(f, range(32)) == list(range(32))


def test_a_cancelled_future_fails_its_callers() -> None:
    def function(_: list[int]) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        return future

    assert [type(outcome) for outcome in answers(function, 1, 2)] == [BatchError] * 2


def test_a_future_that_calls_back_twice_is_heard_once() -> None:
    class Twice:
        def result(self) -> list[str]:
            return ["x", "y"]

        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            callback(self)
            callback(self)
            raise ValueError

    assert answers(lambda _: Twice(), 1, 2) == ["x", "y"]


def test_an_engine_that_calls_back_twice_is_told_no_error() -> None:
    callbacks: list[Callable[[Any], None]] = []

    class Engine:
        def result(self) -> list[str]:
            return ["x"]

        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            callbacks.append(callback)

    engine = Engine()
    with batched(batch_size=1)(lambda _: engine) as f:
        future = f.submit(1)
        until(lambda: len(callbacks) == 1)
        for _ in range(2):
            callbacks[0](engine)
        assert future.result() == "x"
        assert (f.stats.answered, f.stats.in_flight) == (1, 0)


def test_an_engine_that_calls_back_while_its_results_are_read_is_heard_once() -> None:
    callbacks: list[Callable[[Any], None]] = []

    class Results(Sized):
        def __iter__(self) -> Iterator[Any]:
            if not self.iterations:
                self.iterations = 1
                callbacks[0](engine)
            return super().__iter__()

    class Engine:
        def result(self) -> Results:
            return results

        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            callbacks.append(callback)

    engine, results = Engine(), Results("x")
    with batched(batch_size=1)(lambda _: engine) as f:
        future = f.submit(1)
        until(lambda: len(callbacks) == 1)
        callbacks[0](engine)
        assert future.result() == "x"
        assert (f.stats.answered, f.stats.in_flight) == (1, 0)


def test_a_future_of_a_future_is_refused() -> None:
    endless: Future[Any] = Future()
    endless.set_result(endless)
    assert [type(outcome) for outcome in answers(lambda _: endless, 1, 2)] == [TypeError] * 2


def test_a_result_that_has_every_attribute_is_no_future() -> None:
    class Proxy(Sized):
        def __getattr__(self, name: str) -> Any:
            if name == "columns":
                raise AttributeError
            return lambda *_: None

    assert answers(lambda _: Proxy("x", "y"), 1, 2) == ["x", "y"]


@pytest.mark.parametrize("name", ["result", "add_done_callback"])
def test_a_container_that_has_half_of_what_makes_a_future_is_none(name: str) -> None:
    half = type("Half", (Sized,), {name: lambda *_: None})
    assert answers(lambda _: half("x", "y"), 1, 2) == ["x", "y"]


def test_a_future_of_asyncio_is_refused() -> None:
    import asyncio

    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    assert [type(outcome) for outcome in answers(lambda _: future, 1, 2)] == [TypeError] * 2


# Errors


def test_error_reaches_every_caller_of_its_batch_and_no_other() -> None:
    def function(items: list[int]) -> list[int]:
        if 0 in items:
            raise ValueError("zero")
        return items

    with batched(batch_size=4, timeout=None)(function) as f:
        futures = [f.submit(item) for item in range(8)]
        assert [type(future.exception()) for future in futures] == [ValueError] * 4 + [type(None)] * 4


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, __import__("asyncio").CancelledError, BaseException]
)
def test_what_is_no_exception_becomes_a_batch_error(error: type[BaseException]) -> None:
    def function(items: list[int]) -> list[int]:
        if items == [0, 0]:
            raise error
        return items

    with batched(batch_size=2, timeout=None)(function) as f:
        futures = [f.submit(item) for item in (0, 0, 1, 2)]
        outcome = futures[0].exception()
        assert type(outcome) is BatchError
        assert type(outcome.__cause__) is error
        # and the thread lives on
        assert [future.result() for future in futures[2:]] == [1, 2]


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_stop_iteration_does_not_end_the_callers_loop(error: type[Exception]) -> None:
    def function(_: list[int]) -> list[int]:
        raise error

    with batched(batch_size=2)(function) as f, pytest.raises(BatchError):
        list(f.map([1, 2, 3]))


def test_each_caller_gets_its_own_copy() -> None:
    original = ValueError("no", 3)
    original.extra = [1]  # type: ignore[attr-defined]

    def function(_: list[int]) -> list[int]:
        raise original

    with batched(batch_size=50, timeout=None)(function) as f:
        outcomes = in_threads(f, range(50))
    assert len({id(outcome) for outcome in outcomes}) == 50
    for outcome in outcomes:
        assert (type(outcome), outcome.args, outcome.extra) == (ValueError, ("no", 3), [1])
        assert outcome.__cause__ is original
        # this file, and the two functions in between
        assert len(traceback.extract_tb(outcome.__traceback__)) < 6
    assert [entry.name for entry in traceback.extract_tb(original.__traceback__)] == ["function"]


class OwnInit(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class NeedsKeywords(Exception):
    def __init__(self, *, code: int) -> None:
        self.code = code


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class OwnNew(Exception):
    def __new__(cls, *args: object) -> "OwnNew":
        if args != (7,):
            raise RuntimeError
        return super().__new__(cls, *args)

    def __init__(self, code: int) -> None:
        self.code = code


class Uncopyable(Exception):
    code = 7

    def __reduce__(self) -> Any:
        raise RuntimeError

    __reduce_ex__ = __copy__ = __deepcopy__ = __getstate__ = __reduce__  # type: ignore[assignment]


class OwnOSError(OSError):
    code = 7


class HidesItsCause(Exception):
    code = 7
    __cause__ = property(lambda self: None)


class HidesItsTraceback(Exception):
    code = 7

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError

    __traceback__ = property(_refuse)
    with_traceback = _refuse


@pytest.mark.parametrize(
    "original",
    [
        OwnInit(7),
        NeedsKeywords(code=7),
        Slotted(7),
        Frozen(7),
        OwnNew(7),
        Uncopyable(),
        OwnOSError(2, "gone", "file"),
        HidesItsCause(),
        HidesItsTraceback(),
        type("FromAnEarlyModule", (OwnInit,), {"__module__": "a"})(7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_that_are_hard_to_copy_arrive(original: Exception) -> None:
    def function(_: list[int]) -> list[int]:
        raise original

    for outcome in answers(function, 1, 2):
        assert type(outcome) is type(original)
        assert getattr(outcome, "code", None) == 7
        assert str(outcome) == str(original)
        assert outcome is not original


@pytest.mark.parametrize(
    "original",
    [
        OSError(2, "gone", "file"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        ImportError("no", name="a", path="b"),
        ExceptionGroup("several", [ValueError(1), KeyError(2)]),
        SyntaxError("bad", ("file", 1, 2, "text")),
        AttributeError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_built_in_exceptions_keep_all_they_say(original: Exception) -> None:
    outcome = answers(lambda _: [original], 1)[0]
    assert outcome is not original
    assert type(outcome) is type(original)
    names = ("errno", "filename", "encoding", "start", "name", "path", "exceptions", "lineno", "text", "args")
    for name in names:
        assert getattr(outcome, name, None) == getattr(original, name, None)
    assert str(outcome) == str(original)


def test_an_exception_that_cannot_be_copied_arrives_itself() -> None:
    original = UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")
    original.args = ()  # without them none can be made
    assert answers(lambda _: [original], 1)[0] is original


def test_what_is_no_exception_and_hides_its_name_becomes_a_batch_error() -> None:
    class Nameless(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise RuntimeError

    class Exits(BaseException, metaclass=Nameless):
        pass

    outcome = answers(lambda _: [Exits()], 1)[0]
    assert type(outcome) is BatchError
    assert outcome.args == ("<lambda>() raised an exception",)


def test_the_cause_is_what_was_raised_or_the_cause_of_what_was_not() -> None:
    never_raised, cause = KeyError(1), ValueError(2)
    with_cause = KeyError(3)
    with_cause.__cause__ = cause
    raised = KeyError(4)
    with suppress(KeyError):
        raise raised
    outcomes = answers(lambda _: [never_raised, with_cause, raised], 1, 2, 3)
    assert [outcome.__cause__ for outcome in outcomes] == [None, cause, raised]


def test_notes_are_each_callers_own() -> None:
    original = ValueError()
    original.add_note("first")
    one, two = answers(lambda _: [original, original], 1, 2)
    one.add_note("mine")
    assert two.__notes__ == original.__notes__ == ["first"]


# What it leaves behind


def test_the_function_runs_in_an_empty_context() -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")

    def function(items: list[Any]) -> list[str]:
        seen = user.get()
        user.set("the last batch")
        return [seen] * len(items)

    def generator(items: list[Any]) -> Iterator[str]:
        for _ in items:
            yield user.get()

    user.set("first caller")
    for each in (function, generator):
        with batched(batch_size=1)(each) as f:
            assert [f(1), f(1)] == ["nobody", "nobody"]


class Thing:
    """Can be watched."""


def raise_watched(watched: list[weakref.ref[Any]]) -> None:
    error = OwnInit(1)
    watched.append(weakref.ref(error))
    try:
        raise error
    finally:
        del error  # a cycle of our own making


@pytest.mark.parametrize("how", ["call", "submit", "map", "raise", "cancel", "generator", "future"])
@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_nothing_of_a_batch_is_kept_after_the_answer(how: str) -> None:
    watched: list[weakref.ref[Any]] = []

    def function(items: list[Thing]) -> Any:
        watched.extend(weakref.ref(item) for item in items)
        results = [Thing() for _ in items]
        watched.extend(weakref.ref(result) for result in results)
        if how == "raise":
            raise_watched(watched)
        if how == "future":
            return done(results)
        return iter(results) if how == "generator" else results

    gc.collect()
    gc.disable()  # by counting alone
    try:
        f = batched(batch_size=1)(function)
        if how == "map":
            list(f.map([Thing(), Thing()]))
        elif how == "submit":
            f.submit(Thing()).result()
        elif how == "raise":
            with pytest.raises(OwnInit):
                f(Thing())
        elif how == "cancel":
            f.batch_size, f.timeout = 9, None
            thing = Thing()
            watched.append(weakref.ref(thing))
            assert f.submit(thing).cancel()
            del thing
            f.batch_size = 1
        else:
            f(Thing())
        assert watched
        until(lambda: not any(reference() for reference in watched))  # neither by the thread, which sleeps by now
    finally:
        gc.enable()


def test_an_error_of_the_items_of_a_map_is_not_kept() -> None:
    watched: list[weakref.ref[Any]] = []

    def items() -> Iterator[int]:
        yield 1
        raise_watched(watched)

    gc.collect()
    gc.disable()  # by counting alone
    try:
        with batched(batch_size=1)(lambda xs: xs) as f, suppress(OwnInit):
            for _ in f.map(items()):
                pass
        assert [reference() for reference in watched] == [None]
    finally:
        gc.enable()
