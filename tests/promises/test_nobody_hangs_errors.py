"""Nobody hangs: whatever the function raises reaches every caller of its batch, and no other caller.

Each gets a copy of its own, and what would mean something else where it is raised becomes a `BatchError`.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from batchify import BatchError, MissingResultError, ResultCountError

from ..kit import Coroutines, Kit, Threads
from ..tools import batched, in_threads

pytestmark = pytest.mark.usefixtures("no_noise")


async def gather(f: Any, items: Any) -> list[Any]:
    return list(await asyncio.gather(*map(f.aio, items), return_exceptions=True))


def raising(error: BaseException | type[BaseException]) -> Callable[[list[Any]], list[Any]]:
    def function(items: list[Any]) -> list[Any]:
        raise error

    return function


def errors(kit: Kit, handles: list[Any]) -> list[BaseException]:
    """Wait, and return the errors without raising them: some classes of the tests would not bear that."""
    kit.until(lambda: all(handle.done() for handle in handles))
    return [handle.exception() for handle in handles]


# Who is told


def test_error_reaches_every_caller_of_its_batch_and_no_other(kit: Kit) -> None:
    def function(items: list[int]) -> list[int]:
        if 0 in items:
            raise ValueError("zero")
        return items

    f = kit(function, batch_size=4, timeout=None)
    outcomes = kit.outcomes(kit.submits(f, range(8)))
    assert [repr(outcome) for outcome in outcomes] == ["ValueError('zero')"] * 4 + ["4", "5", "6", "7"]


def test_error_reaches_every_caller_of_aio(caplog: pytest.LogCaptureFixture) -> None:
    with batched(batch_size=3, timeout=None)(raising(ValueError("no"))) as f:
        outcomes = asyncio.run(gather(f, range(3)))
    assert [str(outcome) for outcome in outcomes] == ["no"] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert not caplog.records


def test_error_that_no_caller_asks_for_is_not_logged(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    f = kit(raising(ValueError("no")), batch_size=2, timeout=None)
    kit.submits(f, [1, 2])
    kit.until_idle(f)
    kit.settle(f)
    assert f.stats.failed == 2
    assert not caplog.records  # and no_noise hears what asyncio says of it


# What would mean something else where it is raised


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit, BaseException])
def test_error_that_is_no_exception_becomes_a_batch_error_and_the_next_batch_works(
    kit: Kit, error: type[BaseException]
) -> None:
    def function(items: list[int]) -> list[int]:
        if items == [0, 0]:
            raise error
        return items

    f = kit(function, batch_size=2, timeout=None)
    outcomes = kit.outcomes([kit.start(f, 0), kit.submit(f, 0)])
    assert [(type(outcome), type(outcome.__cause__)) for outcome in outcomes] == [(BatchError, error)] * 2
    assert kit.outcomes([kit.start(f, 1), kit.submit(f, 2)]) == [1, 2]
    assert len(kit.idents) == 1  # in the same thread


@pytest.mark.parametrize("error", [asyncio.CancelledError, StopIteration, KeyboardInterrupt, SystemExit])
def test_error_that_is_no_exception_becomes_a_batch_error_of_aio(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    with batched(batch_size=2, timeout=None)(raising(error)) as f:
        outcomes = asyncio.run(gather(f, range(2)))
    assert [(type(outcome), type(outcome.__cause__)) for outcome in outcomes] == [(BatchError, error)] * 2
    assert not caplog.records


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_stop_iteration_does_not_end_the_loop_of_a_caller(kit: Kit, error: type[Exception]) -> None:
    f = kit(raising(error), batch_size=2)
    with pytest.raises((BatchError, RuntimeError)) as caught:
        list(kit.map(f, [1, 2, 3]))
    # A coroutine that raises StopIteration raises RuntimeError, by the rules of the language.
    by_language = kit.kind == "coroutines" and error is StopIteration
    assert caught.type is (RuntimeError if by_language else BatchError)
    assert by_language or type(caught.value.__cause__) is error


def test_stop_iteration_is_a_runtime_error_as_in_any_coroutine(coroutines: Coroutines) -> None:
    f = coroutines(raising(StopIteration), batch_size=2, timeout=None)
    outcomes = coroutines.outcomes([coroutines.start(f, 1), coroutines.submit(f, 1)])
    assert list(map(repr, outcomes)) == ["RuntimeError('coroutine raised StopIteration')"] * 2


def test_batch_error_is_the_base_of_result_count_error_and_missing_result_error(kit: Kit) -> None:
    too_few, no_value = kit.answers(lambda xs: [], 1, 2), kit.answers(lambda xs: {}, 1, 2)
    assert [type(error) for error in (*too_few, *no_value)] == [ResultCountError] * 2 + [MissingResultError] * 2
    assert all(isinstance(error, BatchError) for error in (*too_few, *no_value))


# Copies


@pytest.mark.parametrize("error", [ValueError("no"), ExceptionGroup("no", [ValueError("one")])], ids=["one", "group"])
def test_copy_of_an_error_is_each_callers_own(kit: Kit, error: Exception) -> None:
    f = kit(raising(error), batch_size=3, timeout=None)
    calls = [kit.start(f, 1), kit.submit(f, 1), kit.start(f.aio if kit.kind == "coroutines" else f, 1)]
    copies = kit.outcomes(calls)
    assert [type(copy) for copy in copies] == [type(error)] * 3
    assert [copy.__cause__ for copy in copies] == [error] * 3
    assert len({id(copy) for copy in copies}) == 3
    assert all(copy is not error for copy in copies)


def test_copy_of_an_error_in_each_of_many_threads_has_a_short_traceback_of_its_own() -> None:
    original = ValueError("no", 3)
    original.extra = [1]  # type: ignore[attr-defined]

    with batched(batch_size=50, timeout=None)(raising(original)) as f:
        copies = in_threads(f, range(50))
    assert len({id(copy) for copy in copies}) == 50
    for copy in copies:
        assert (type(copy), copy.args, copy.extra) == (ValueError, ("no", 3), [1])
        assert copy.__cause__ is original
        # in_threads(), and the functions of ours in between
        assert len(traceback.extract_tb(copy.__traceback__)) < 6
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


HARD_TO_COPY: list[Callable[[], Exception]] = [
    lambda: OwnInit(7),
    lambda: NeedsKeywords(code=7),
    lambda: Slotted(7),
    lambda: Frozen(7),
    lambda: OwnNew(7),
    lambda: Uncopyable(),
    lambda: OwnOSError(2, "gone", "file"),
    lambda: HidesItsCause(),
    lambda: HidesItsTraceback(),
    lambda: type("FromAnEarlyModule", (OwnInit,), {"__module__": "a"})(7),
]


@pytest.mark.parametrize("make", HARD_TO_COPY, ids=lambda make: type(make()).__name__)
def test_copy_of_an_exception_that_is_hard_to_copy_says_the_same(kit: Kit, make: Callable[[], Exception]) -> None:
    original = make()
    f = kit(raising(original), batch_size=2, timeout=None)
    for copy in errors(kit, [kit.start(f, 1), kit.submit(f, 2)]):
        assert type(copy) is type(original)
        assert getattr(copy, "code", None) == 7
        assert str(copy) == str(original)
        assert copy is not original


@pytest.mark.parametrize("make", HARD_TO_COPY, ids=lambda make: type(make()).__name__)
def test_result_of_a_future_raises_an_exception_that_is_hard_to_copy(
    threads: Threads, make: Callable[[], Exception]
) -> None:
    original = make()
    f = threads(raising(original), batch_size=1)
    with pytest.raises(type(original)) as caught:
        f.submit(1).result()
    assert getattr(caught.value, "code", None) == 7


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
def test_copy_of_a_built_in_exception_keeps_all_it_says(kit: Kit, original: Exception) -> None:
    (copy,) = kit.answers(lambda _: [original], 1)
    assert copy is not original
    assert type(copy) is type(original)
    names = ("errno", "filename", "encoding", "start", "name", "path", "exceptions", "lineno", "text", "args")
    for name in names:
        assert getattr(copy, name, None) == getattr(original, name, None)
    assert str(copy) == str(original)


def test_exception_that_cannot_be_copied_arrives_itself(kit: Kit) -> None:
    original = UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")
    original.args = ()  # without them none can be made
    (outcome,) = kit.answers(lambda _: [original], 1)
    assert outcome is original


def test_error_that_is_no_exception_and_hides_its_name_becomes_a_batch_error(kit: Kit) -> None:
    class Nameless(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise RuntimeError

    class Exits(BaseException, metaclass=Nameless):
        pass

    (outcome,) = kit.answers(lambda _: [Exits()], 1)
    assert type(outcome) is BatchError
    assert outcome.args == ("<lambda>() raised an exception",)


@pytest.mark.parametrize("how", ["raise", "return", "yield"])
def test_error_whose_class_attribute_exits_reaches_its_callers(kit: Kit, how: str) -> None:
    class Exits(Exception):
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            raise SystemExit

    def function(items: list[int]) -> list[Any]:
        if how == "raise":
            raise Exits
        return [Exits() for _ in items]

    def generator(items: list[int]) -> Iterator[Any]:
        for _ in items:
            yield Exits()

    options: dict[str, Any] = {"batch_size": 2, "timeout": None}
    f = kit.stream(generator, **options) if how == "yield" else kit(function, **options)
    assert [type(error) for error in errors(kit, kit.starts(f, [1, 2]))] == [Exits] * 2


# What a copy knows of the original


def test_cause_of_a_copy_is_the_original_if_it_was_raised_and_else_its_cause(kit: Kit) -> None:
    never_raised, cause = KeyError(1), ValueError(2)
    with_cause = KeyError(3)
    with_cause.__cause__ = cause
    raised = KeyError(4)
    with suppress(KeyError):
        raise raised
    copies = kit.answers(lambda _: [never_raised, with_cause, raised], 1, 2, 3)
    assert [copy.__cause__ for copy in copies] == [None, cause, raised]


def test_notes_of_a_copy_are_its_callers_own(kit: Kit) -> None:
    original = ValueError()
    original.add_note("first")
    one, two = kit.answers(lambda _: [original, original], 1, 2)
    one.add_note("mine")
    assert two.__notes__ == original.__notes__ == ["first"]
