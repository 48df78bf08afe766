"""What each option promises, over threads and over coroutines with the same words, and all of them together."""

import asyncio
import contextvars
import copy
import functools
import gc
import inspect
import logging
import math
import pickle
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

import cloudpickle
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchify import BatchError, BatchReport, BufferFullError, ClosedError, MissingResultError, ResultCountError
from batchify import _asyncio as asyncio_module
from batchify import _threads as threads_module

from .test_coroutines import HandLoop
from .tools import batched as batched_untyped
from .tools import flush_thread, in_threads, run_script
from .tools import until as until_thread

batched: Callable[..., Any] = batched_untyped


def negate(xs: list[int]) -> list[int]:
    return [-x for x in xs]


def echo(xs: list[Any]) -> list[Any]:
    return xs


class Kit:
    """The words that tests of both kinds of functions use. Remembers how the function was called."""

    kind = ""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[list[Any], ...], dict[str, Any]]] = []
        self.idents: set[int] = set()
        self.running = self.most = 0
        self.made: list[Any] = []
        self._counts = threading.Lock()

    @property
    def batches(self) -> list[list[Any]]:
        """The first column of each call of the function."""
        return [args[0] for args, _ in self.calls]

    def __call__(self, function: Callable[..., Any] = negate, *, gated: bool = False, **options: Any) -> Any:
        """Decorate a function, as a coroutine function if need be. If `gated` it stops in each call until `go_on()`."""
        made = batched(**options)(self.wrap(function, gated=gated))
        self.made.append(made)
        return made

    def wrap(self, function: Callable[..., Any], *, gated: bool = False) -> Callable[..., Any]:
        raise NotImplementedError

    def enter(self, args: Any, constants: dict[str, Any]) -> None:
        with self._counts:
            self.calls.append((tuple(arg.copy() for arg in args if isinstance(arg, list)), constants))
            self.idents.add(threading.get_ident())
            self.running += 1
            self.most = max(self.most, self.running)

    def leave(self) -> None:
        with self._counts:
            self.running -= 1

    def outcomes(self, handles: Any) -> list[Any]:
        return [self.outcome(handle) for handle in handles]

    def submits(self, f: Any, items: Any) -> list[Any]:
        return [self.submit(f, item) for item in items]

    def until_runs(self, batches: int) -> None:
        """Wait until the function has been called so often."""
        self.until(lambda: len(self.calls) >= batches)

    def busy(self, f: Any, item: Any) -> Any:
        """Let the gated function be busy with that item."""
        begun = len(self.calls)
        handle = self.submit(f, item)
        self.flush(f)
        self.until_runs(begun + 1)
        return handle

    def until_waits(self, f: Any, *, pending: int | None = None, blocked: int | None = None) -> None:
        def waits() -> bool:
            stats = f.stats
            return pending in (None, stats.pending) and blocked in (None, stats.blocked)

        self.until(waits)

    def until_idle(self, f: Any) -> None:
        """Wait until all batches have ended, and so all is counted."""
        self.until(lambda: f.stats.in_flight == 0)

    def consistent(self, f: Any) -> None:
        """All that was accepted is at its end, and counted once."""
        stats = f.stats
        assert stats.accepted == stats.answered + stats.failed + stats.cancelled
        assert (stats.pending, stats.running, stats.in_flight, stats.blocked) == (0, 0, 0, 0)
        assert sum(stats.sizes.values()) == sum(stats.reasons.values()) == stats.batches
        assert {reason: sum(sizes.values()) for reason, sizes in stats.sizes_by_reason.items()} == stats.reasons

    # Each kind in its own way:

    def submit(self, f: Any, *args: Any, **constants: Any) -> Any: ...
    def start(self, f: Any, *args: Any, **constants: Any) -> Any: ...
    def outcome(self, handle: Any) -> Any: ...

    def map(self, f: Any, *args: Any, **constants: Any) -> Iterator[Any]:
        raise NotImplementedError

    def until(self, condition: Callable[[], bool]) -> None: ...
    def go_on(self, batches: int = 1) -> None: ...
    def flush(self, f: Any) -> None: ...
    def close(self, f: Any) -> None: ...
    def end(self) -> None: ...

    def lock_is_held(self) -> bool:
        raise NotImplementedError


class Threads(Kit):
    kind = "threads"

    def __init__(self) -> None:
        super().__init__()
        self.let_on = threading.Semaphore(0)

    def wrap(self, function: Callable[..., Any], *, gated: bool = False) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **constants: Any) -> Any:
            self.enter(args, constants)
            try:
                if gated:
                    self.let_on.acquire(timeout=150)
                return function(*args, **constants)
            finally:
                self.leave()

        return run

    def submit(self, f: Any, *args: Any, **constants: Any) -> Any:
        return f.submit(*args, **constants)

    def start(self, f: Any, *args: Any, **constants: Any) -> Any:
        """Call in a thread. Returns when the call waits, or has ended."""
        handle: Future[Any] = Future()
        handle.set_running_or_notify_cancel()  # a thread cannot leave
        before = f.stats

        def call() -> None:
            try:
                handle.set_result(f(*args, **constants))
            except BaseException as error:
                handle.set_exception(error)

        threading.Thread(target=call, daemon=True).start()

        def waits() -> bool:
            now = f.stats
            return handle.done() or now.accepted + now.blocked > before.accepted + before.blocked

        until_thread(waits)
        return handle

    def outcome(self, handle: Any) -> Any:
        try:
            return handle.result()
        except BaseException as error:
            if not handle.done():
                raise  # the watchdog
            return error

    def map(self, f: Any, *args: Any, **constants: Any) -> Iterator[Any]:
        yield from f.map(*args, **constants)

    def until(self, condition: Callable[[], bool]) -> None:
        until_thread(condition)

    def go_on(self, batches: int = 1) -> None:
        self.let_on.release(batches)

    def flush(self, f: Any) -> None:
        f.flush()

    def close(self, f: Any) -> None:
        f.close()

    def end(self) -> None:
        self.go_on(500)
        for f in self.made:
            f._self_batcher.close(wait=False)
            for thread in list(f._self_batcher._threads.values()):
                thread.join(20)  # after a failure it may never end

    def lock_is_held(self) -> bool:
        return bool(threads_module._lock._is_owned())  # type: ignore[attr-defined]


class Coroutines(Kit):
    kind = "coroutines"

    def __init__(self) -> None:
        super().__init__()
        self.loop = HandLoop()
        self.let_on = asyncio.Semaphore(0)

    def run(self, steps: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(steps)

    def wrap(self, function: Callable[..., Any], *, gated: bool = False) -> Callable[..., Any]:
        @functools.wraps(function)
        async def run(*args: Any, **constants: Any) -> Any:
            self.enter(args, constants)
            try:
                if gated:
                    await self.let_on.acquire()
                return function(*args, **constants)
            finally:
                self.leave()

        return run

    def submit(self, f: Any, *args: Any, **constants: Any) -> Any:
        async def submit() -> list[Any]:
            return [f.submit(*args, **constants)]

        return self.run(submit())[0]

    def start(self, f: Any, *args: Any, **constants: Any) -> Any:
        task = self.loop.create_task(f(*args, **constants))
        self.turn(3)
        return task

    def turn(self, turns: int = 20) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(turn())

    def outcome(self, handle: Any) -> Any:
        try:
            return self.loop.run_until_complete(handle)
        except BaseException as error:
            if not handle.done():
                raise  # the watchdog
            return error

    def map(self, f: Any, *args: Any, **constants: Any) -> Iterator[Any]:
        results = f.map(*args, **constants)
        try:
            while True:
                with suppress(StopAsyncIteration):
                    yield self.run(anext(results))
                    continue
                return
        finally:
            self.run(results.aclose())

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.turn(1)

    def go_on(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.let_on.release()
        self.turn()

    def flush(self, f: Any) -> None:
        async def flush() -> None:
            f.flush()

        self.run(flush())
        self.turn(3)

    def close(self, f: Any) -> None:
        self.run(f.aclose())

    def end(self) -> None:
        self.let_on._value = 10**6
        self.let_on.release()
        self.let_on = asyncio.Semaphore(10**6)
        for f in self.made:
            self.close(f)
        self.turn(3)
        self.loop.close()

    def lock_is_held(self) -> bool:
        return bool(asyncio_module._lock._is_owned())  # type: ignore[attr-defined]


KINDS: dict[str, type[Kit]] = {"threads": Threads, "coroutines": Coroutines}


@pytest.fixture(params=KINDS)
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    kit = KINDS[request.param]()
    yield kit
    kit.end()


@pytest.fixture
def threads() -> Iterator[Threads]:
    kit = Threads()
    yield kit
    kit.end()


@pytest.fixture
def coroutines() -> Iterator[Coroutines]:
    kit = Coroutines()
    yield kit
    kit.end()


# Wrong values

COUNT = "must be an int of at least 1, got"
FUNCTION = "must be a function, and no coroutine function, got"


async def later(x: object) -> int:
    return 1


class Later:
    async def __call__(self, x: object) -> int:
        return 1


LATER = Later()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1, got 0"),
        ({"concurrency": 2.0}, TypeError, f"concurrency {COUNT} 2.0"),
        ({"concurrency": True}, TypeError, f"concurrency {COUNT} True"),
        ({"concurrency": None}, TypeError, f"concurrency {COUNT} None"),
        ({"max_pending": 0}, ValueError, "max_pending must be at least 1, got 0"),
        ({"max_pending": "9"}, TypeError, f"max_pending {COUNT} '9'"),
        ({"max_pending": math.inf}, TypeError, f"max_pending {COUNT} inf"),
        ({"on_full": "drop", "max_pending": 1}, ValueError, "on_full must be 'wait' or 'raise', got 'drop'"),
        ({"on_full": None, "max_pending": 1}, ValueError, "on_full must be 'wait' or 'raise', got None"),
        ({"on_full": [], "max_pending": 1}, ValueError, "on_full must be 'wait' or 'raise', got []"),
        ({"on_full": "raise"}, TypeError, "on_full needs max_pending, the most items that may wait"),
        ({"dedupe": 1}, TypeError, "dedupe must be True or False, got 1"),
        ({"isolate": None}, TypeError, "isolate must be True or False, got None"),
        ({"group_by": "size"}, TypeError, f"group_by {FUNCTION} 'size'"),
        ({"group_by": later}, TypeError, f"group_by {FUNCTION} {later!r}"),
        ({"on_batch": later}, TypeError, f"on_batch {FUNCTION} {later!r}"),
        ({"on_batch": LATER}, TypeError, f"on_batch {FUNCTION} {LATER!r}"),
        ({"on_batch": 5}, TypeError, f"on_batch {FUNCTION} 5"),
        ({"weight": 5, "max_weight": 1}, TypeError, f"weight {FUNCTION} 5"),
        ({"weight": later, "max_weight": 1}, TypeError, f"weight {FUNCTION} {later!r}"),
        (
            {"weight": len},
            TypeError,
            "weight needs max_weight: what an item weighs, and the most that a batch may weigh",
        ),
        (
            {"max_weight": 1},
            TypeError,
            "max_weight needs weight: what an item weighs, and the most that a batch may weigh",
        ),
        ({"weight": len, "max_weight": "5"}, TypeError, "max_weight must be a number, got '5'"),
        ({"weight": len, "max_weight": True}, TypeError, "max_weight must be a number, got True"),
        ({"weight": len, "max_weight": 0}, ValueError, "max_weight must be above 0 and finite, got 0"),
        ({"weight": len, "max_weight": -1.5}, ValueError, "max_weight must be above 0 and finite, got -1.5"),
        ({"weight": len, "max_weight": math.inf}, ValueError, "max_weight must be above 0 and finite, got inf"),
        ({"weight": len, "max_weight": math.nan}, ValueError, "max_weight must be above 0 and finite, got nan"),
    ],
    ids=[f"{number}" for number in range(28)],
)
def test_a_wrong_value_is_refused_in_full(
    kit: Kit, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        kit(**{"batch_size": 2, **options})
    assert str(raised.value) == f"negate(): {message}"

    class C:
        def m(self, xs: Any) -> Any: ...

    with pytest.raises(error) as raised:
        batched(**{"batch_size": 2, **options})(C.m)
    assert str(raised.value) == f"C.m(): {message}"


# Columns and constants


def pairs(xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
    return list(zip(xs, ys, strict=True))


def scaled(xs: list[int], ys: list[int] = 7, *, model: str = "small") -> list[str]:  # type: ignore[assignment]
    return [f"{model} {x} {y}" for x, y in zip(xs, ys, strict=True)]


def embed(texts: list[Any], *, model: Any = "small") -> list[Any]:
    return [(model, text) for text in texts]


def test_each_positional_parameter_is_a_list_of_one_entry_per_item(kit: Kit) -> None:
    f = kit(pairs, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1, 2), kit.submit(f, 3, ys=4)]) == [(1, 2), (3, 4)]
    assert kit.outcomes([kit.start(f, 5, 6), kit.start(f, ys=8, xs=7)]) == [(5, 6), (7, 8)]
    assert kit.calls == [(([1, 3], [2, 4]), {}), (([5, 7], [6, 8]), {})]


def test_a_default_of_a_column_is_that_of_each_item(kit: Kit) -> None:
    f = kit(scaled, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1), kit.submit(f, 2, 3)]) == ["small 1 7", "small 2 3"]
    g = kit(lambda xs=5: xs, batch_size=1)
    assert kit.outcomes([kit.submit(g), kit.start(g), kit.submit(g, 4), kit.start(g, 4)]) == [5, 5, 4, 4]


def test_each_column_is_a_list_of_the_functions_own(kit: Kit) -> None:
    def change(xs: list[int], ys: list[int]) -> list[int]:
        sums = [x + y for x, y in zip(xs, ys, strict=True)]
        xs.clear()
        ys.append(0)
        return sums

    f = kit(change, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1, 2), kit.submit(f, 3, 4)]) == [3, 7]


def test_calls_with_other_constants_never_share_a_batch(kit: Kit) -> None:
    f = kit(embed, batch_size=2, timeout=None)
    models: list[Any] = ["large", None, 1, 1.0, True, "large", None, 1, 1.0, True]
    handles = [kit.submit(f, number, model=model) for number, model in enumerate(models)]
    default = [kit.submit(f, 10), kit.submit(f, 11, model="small")]
    outcomes = kit.outcomes([*handles, *default])
    assert [number for _, number in outcomes] == list(range(12))
    assert [(type(model), model) for model, _ in outcomes] == [
        (type(each), each) for each in [*models, "small", "small"]
    ]
    assert kit.batches == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9], [10, 11]]


def test_an_unhashable_constant_is_that_calls_error(kit: Kit) -> None:
    f = kit(embed, batch_size=2, timeout=None)
    first = kit.submit(f, 1)
    error = kit.outcome(kit.start(f, 2, model=[]))
    assert (type(error), str(error)) == (TypeError, "unhashable type: 'list'")
    with pytest.raises(TypeError, match="unhashable type: 'dict'"):
        kit.submit(f, 2, model={})
    assert kit.outcomes([first, kit.submit(f, 3)]) == [("small", 1), ("small", 3)]
    assert f.stats.accepted == 2


@pytest.mark.parametrize(
    ("args", "constants"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2, 3), {}),
        ((1, 2), {"zs": 3}),
        ((1, 2), {"xs": 3}),
        ((), {"model": "large"}),
        ((1, 2, 3), {"model": "large"}),
        ((1, 2), {"modle": "large"}),
    ],
)
def test_wrong_arguments_are_what_python_itself_would_say(
    kit: Kit, args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    def f(xs: Any, ys: Any, *, model: str = "small") -> Any:
        return xs

    f.__qualname__ = "f"
    with pytest.raises(TypeError) as expected:
        f(*args, **constants)
    g = kit(f, batch_size=1)
    errors = [kit.outcome(kit.start(g, *args, **constants))]
    for call in (kit.submit, kit.map):
        with pytest.raises(TypeError) as raised:
            list(call(g, *args, **constants) or ())
        if call != kit.map or args:  # else it misses the `items` of its own
            errors.append(raised.value)
    with asyncio.Runner() as runner, pytest.raises(TypeError) as raised:
        runner.run(g.aio(*args, **constants))
    errors.append(raised.value)
    assert {str(error) for error in errors} == {str(expected.value)}
    assert g.stats.accepted == 0


@pytest.mark.parametrize(
    ("args", "constants"),
    [((), {}), ((1, 2), {}), ((1, 2, 3), {}), ((1,), {"xs": 2}), ((1,), {"model": 2}), ((), {"xs": 1})],
)
def test_wrong_arguments_of_a_function_of_one_list_are_what_python_would_say(
    kit: Kit, args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    def f(xs: Any, /) -> Any:
        return xs

    f.__qualname__ = "f"
    with pytest.raises(TypeError) as expected:
        f(*args, **constants)
    g = kit(f, batch_size=1)
    errors = [kit.outcome(kit.start(g, *args, **constants))]
    with pytest.raises(TypeError) as raised:
        kit.submit(g, *args, **constants)
    errors.append(raised.value)
    with asyncio.Runner() as runner, pytest.raises(TypeError) as raised:
        runner.run(g.aio(*args, **constants))
    errors.append(raised.value)
    assert {str(error) for error in errors} == {str(expected.value)}
    assert g.stats.accepted == 0


def test_a_default_that_is_spelt_out_is_the_same(kit: Kit) -> None:
    f = kit(embed, batch_size=3, timeout=None)
    handles = [kit.submit(f, 1), kit.submit(f, 2, model="small"), kit.submit(f, 3)]
    assert kit.outcomes(handles) == [("small", 1), ("small", 2), ("small", 3)]


def test_the_message_counts_and_names_the_arguments_of_a_method_as_python_does(kit: Kit) -> None:
    class C:
        m = batched(batch_size=1)(kit.wrap(lambda self, xs, ys: xs))

        def plain(self, xs: Any, ys: Any) -> Any: ...

    for args in ((), (1,), (1, 2, 3)):
        with pytest.raises(TypeError) as expected:
            C().plain(*args)
        error = kit.outcome(kit.start(C().m, *args))
        assert str(error).partition("()")[2] == str(expected.value).partition("()")[2]


def test_names_of_parameters_may_be_any(kit: Kit) -> None:
    def f(items: Any, self: Any, item: Any = 3, *, of: Any = 4, args: Any = 5, bind: Any = 6, _item_: Any = 7) -> Any:
        return [(*each, of, args, bind, _item_) for each in zip(items, self, item, strict=True)]

    g = kit(f, batch_size=1)
    everything = {"items": 1, "self": 2, "item": 0, "of": 0, "args": 0, "bind": 0, "_item_": 0}
    assert kit.outcome(kit.start(g, 1, 2)) == (1, 2, 3, 4, 5, 6, 7)
    with asyncio.Runner() as runner:
        assert runner.run(g.aio(**everything)) == (1, 2, 0, 0, 0, 0, 0)
    if kit.kind == "threads":
        assert g(**everything) == g.submit(**everything).result() == (1, 2, 0, 0, 0, 0, 0)
    else:
        assert kit.outcome(kit.loop.create_task(g(**everything))) == (1, 2, 0, 0, 0, 0, 0)  # type: ignore[attr-defined]


def test_what_a_call_passes_has_a_name_unless_it_is_one_item_alone(kit: Kit) -> None:
    f, g, h = (kit(function, batch_size=1) for function in (echo, embed, scaled))
    assert kit.outcome(kit.start(g, model="large", texts=1)) == ("large", 1)
    assert kit.outcome(kit.start(h, model="m", ys=2, xs=1)) == "m 1 2"
    error = kit.outcome(kit.start(f, xs=1))
    assert type(error) is TypeError
    assert "positional-only" in str(error)


def test_positional_only_columns(kit: Kit) -> None:
    def f(xs: Any, /, ys: Any = 2, *, z: int = 3) -> list[Any]:
        return [(x, y, z) for x, y in zip(xs, ys, strict=True)]

    f.__qualname__ = "f"
    g = kit(f, batch_size=1)
    assert kit.outcome(kit.start(g, 1, ys=5, z=6)) == (1, 5, 6)
    with pytest.raises(TypeError) as expected:
        f(xs=1)  # type: ignore[call-arg]
    assert str(kit.outcome(kit.start(g, xs=1))) == str(expected.value)


def test_signature_and_annotations_of_columns(kit: Kit) -> None:
    f = kit(scaled, batch_size=2)
    assert str(inspect.signature(f)) == "(xs: int, ys: int = 7, *, model: str = 'small') -> str"
    assert f.__annotations__ == {"xs": int, "ys": int, "model": str, "return": str}
    f = kit(embed, batch_size=2)
    assert str(inspect.signature(f)).startswith("(texts: Any, *, model: Any = 'small')")

    class C:
        def m(self, xs: list[int], ys: list[str], *, z: list[int]) -> list[bytes]:
            return []

        m = batched(batch_size=2)(m)

    assert str(inspect.signature(C.m)) == "(self, xs: int, ys: str, *, z: list[int]) -> bytes"
    assert str(inspect.signature(C().m)) == "(xs: int, ys: str, *, z: list[int]) -> bytes"


def test_methods_with_columns_and_constants(kit: Kit) -> None:
    def m(self: Any, xs: list[int], ys: list[int], *, factor: int = 1) -> list[int]:
        return [factor * (x + y) for x, y in zip(xs, ys, strict=True)]

    def times(xs: list[int], ys: list[int]) -> list[int]:
        return [x * y for x, y in zip(xs, ys, strict=True)]

    m.__qualname__ = "C.m"

    class C:
        plain = batched(batch_size=2)(kit.wrap(m))
        of_class = batched(batch_size=2)(classmethod(kit.wrap(m)))
        static = batched(batch_size=2)(staticmethod(kit.wrap(times)))

    c = C()
    for method in (c.plain, c.of_class, C.of_class):
        assert kit.outcome(kit.start(method, 1, 2, factor=10)) == 30
        assert kit.outcome(kit.submit(method, 1, ys=5)) == 6
        assert list(kit.map(method, [1, 2], [3, 4, 5], factor=2)) == [8, 12]
    for function in (C.static, c.static):
        assert kit.outcome(kit.start(function, 3, 4)) == 12
    error = kit.outcome(kit.start(c.plain, 1))
    assert str(error).endswith("m() missing 1 required positional argument: 'ys'")


def test_a_static_method_of_two_lists_has_no_instance(kit: Kit) -> None:
    def function(xs: list[Any], ys: list[Any]) -> list[Any]:
        return pairs(xs, ys)

    function.__qualname__ = "C.f"  # as if it were written in a class
    f = batched(batch_size=1)(staticmethod(kit.wrap(function)))
    kit.made.append(f)
    assert kit.outcome(kit.start(f, 1, 2)) == (1, 2)


def test_map_takes_an_iterable_for_each_column(kit: Kit) -> None:
    f = kit(scaled, batch_size=3)
    assert list(kit.map(f, range(5), iter("abcd"), model="m")) == ["m 0 a", "m 1 b", "m 2 c", "m 3 d"]
    assert list(kit.map(f, (x for x in [1, 2]))) == ["small 1 7", "small 2 7"]
    with pytest.raises(TypeError, match="is not iterable"):
        list(kit.map(f, [1], 2))
    with pytest.raises(TypeError, match="is not iterable"):
        list(kit.map(f, 1))


def test_map_of_an_async_iterable_takes_constants(coroutines: Coroutines) -> None:
    async def numbers() -> Any:
        for number in range(4):
            yield number

    async def main() -> list[Any]:
        return [each async for each in f.map(numbers(), model="m")]

    f = coroutines(embed, batch_size=3)
    assert coroutines.run(main()) == [("m", number) for number in range(4)]


def test_a_generator_function_with_columns(kit: Kit) -> None:
    def sums(xs: list[int], ys: list[int], *, plus: int = 0) -> Iterator[int]:
        for x, y in zip(xs, ys, strict=True):
            yield x + y + plus

    f = kit(sums, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1, 2, plus=5), kit.submit(f, 3, 4, plus=5)]) == [8, 12]


def test_weight_and_group_by_get_what_the_call_got(kit: Kit) -> None:
    asked: list[Any] = []

    def weigh(x: int, y: int) -> float:
        asked.append((x, y))
        return y

    f = kit(scaled, batch_size=9, timeout=None, weight=weigh, max_weight=8, group_by=lambda x, y: x % 2)
    handles = [kit.submit(f, 1), kit.submit(f, 2, 7), kit.submit(f, 3, 1), kit.submit(f, 4, ys=1)]
    kit.outcomes(handles)
    assert asked == [(1, 7), (2, 7), (3, 1), (4, 1)]
    assert kit.batches == [[1, 3], [2, 4]]


def test_an_option_may_be_a_method_of_what_was_made_here(kit: Kit) -> None:
    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def weigh(self, x: int) -> float:
            return self.factor * x

    f = kit(batch_size=9, timeout=None, weight=Scale(0.5).weigh, max_weight=1.0)
    handles = kit.submits(f, [1, 1, 2])
    kit.close(f)
    assert kit.outcomes(handles) == [-1, -1, -2]
    assert kit.batches == [[1, 1], [2]]


# Pickled


@batched(  # type: ignore[untyped-decorator]
    batch_size=3,
    timeout=1.5,
    weight=lambda x, y: x,
    max_weight=4,
    group_by=lambda x, y: y,
    dedupe=True,
    isolate=True,
    concurrency=2,
    max_pending=9,
    on_full="raise",
    on_batch=lambda report: None,
)
def everything(xs: list[int], ys: list[int], *, model: str = "small") -> list[int]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


def test_an_importable_function_with_all_options_is_pickled_by_reference() -> None:
    for pickler in (pickle, cloudpickle):
        assert pickle.loads(pickler.dumps(everything)) is everything
    assert copy.deepcopy(everything) is copy.copy(everything) is everything


def test_cloudpickle_keeps_all_options_of_a_function_made_here() -> None:
    factor = 3
    options: dict[str, Any] = {
        "batch_size": 3,
        "timeout": None,
        "weight": lambda x, y: factor * x,
        "max_weight": 40,
        "group_by": lambda x, y: y,
        "dedupe": True,
        "isolate": True,
        "concurrency": 2,
        "max_pending": 9,
        "on_full": "raise",
        "on_batch": lambda report: None,
    }

    def sums(xs: list[int], ys: list[int], *, plus: int = 1) -> list[int]:
        return [x + y + plus for x, y in zip(xs, ys, strict=True)]

    class C:
        m = batched(**options)(lambda self, xs, ys, *, plus=1: sums(xs, ys, plus=plus))

    f = batched(**options)(sums)
    f.timeout = 0.0
    other, instance = pickle.loads(cloudpickle.dumps((f, C())))
    again = pickle.loads(cloudpickle.dumps(other))
    for copied in (other, again):
        kept = copied._self_batcher.options
        for option, value in options.items():
            if not callable(value):
                assert getattr(kept, option) == (0.0 if option == "timeout" else value)
        assert (kept.weight(2, 0), kept.group_by(1, 5)) == (6, 5)
        assert kept.on_batch is not None
        with copied:
            assert (copied(1, 2, plus=10), copied(1, 2)) == (13, 4)
    assert f.stats.accepted == 0
    kept = instance.m._self_batcher.options
    assert (kept.weight(2, 0), kept.dedupe, kept.max_pending) == (6, True, 9)
    instance.m.timeout = 0.0
    with instance.m as m:
        assert m(1, 2) == 4


# group_by


def test_only_equal_groups_share_a_batch(kit: Kit) -> None:
    f = kit(echo, batch_size=3, timeout=None, group_by=lambda x: x % 2)
    assert kit.outcomes(kit.submits(f, [1, 2, 3, 4, 5, 6])) == [1, 2, 3, 4, 5, 6]
    assert kit.batches == [[1, 3, 5], [2, 4, 6]]
    kit.consistent(f)


def test_between_groups_the_one_whose_oldest_waited_longest_goes_first(kit: Kit) -> None:
    f = kit(echo, gated=True, batch_size=2, timeout=0.0, group_by=lambda x: x // 10)
    busy = kit.busy(f, 0)
    handles = kit.submits(f, [11, 21, 31, 22, 12, 23, 32])
    kit.go_on(10)
    kit.outcomes([busy, *handles])
    assert kit.batches == [[0], [11, 12], [21, 22], [31, 32], [23]]


def test_a_full_group_goes_before_an_older_one_that_is_not_due(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, group_by=lambda x: x // 10)
    old = kit.submit(f, 11)
    assert kit.outcomes(kit.submits(f, [21, 22])) == [21, 22]
    assert not old.done()
    kit.flush(f)
    assert kit.outcome(old) == 11
    assert f.stats.reasons == {"flush": 1, "full": 1}


def test_a_group_that_a_smaller_batch_size_makes_full_goes_at_once(kit: Kit) -> None:
    f = kit(batch_size=4, timeout=None, group_by=lambda x: x % 2)
    handles = kit.submits(f, [1, 0, 2])
    f.batch_size = 2
    assert kit.outcomes(handles[1:]) == [0, -2]
    assert not handles[0].done()
    kit.close(f)
    assert kit.outcome(handles[0]) == -1


def test_a_steady_stream_to_one_group_starves_no_other(kit: Kit) -> None:
    f = kit(echo, gated=True, batch_size=2, timeout=0.0, group_by=lambda x: x < 0)
    handles = [kit.busy(f, 1), kit.submit(f, -1)]
    for number in range(2, 12, 2):
        handles += kit.submits(f, [number, number + 1])  # the other group is always full
        kit.go_on()
        kit.until_runs(number // 2 + 1)
    assert kit.batches[1] == [-1]
    kit.go_on(10)
    kit.outcomes(handles)


def test_an_empty_group_leaves_nothing_behind(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, group_by=lambda x: x // 2)
    assert kit.outcomes(kit.submits(f, range(40))) == list(range(40))
    lone = kit.submits(f, range(100, 200, 2))
    for future in lone[:25]:
        assert future.cancel()
    kit.flush(f)
    del future
    assert kit.outcomes(lone[25:]) == list(range(150, 200, 2))
    del lone
    buffer = the_buffer(f)
    gc.collect()
    kit.until(lambda: len(buffer._groups) == 0)  # the thread may be about to end its batch
    assert buffer._full == []
    kit.consistent(f)


def the_buffer(f: Any) -> Any:
    batcher = f._self_batcher
    return batcher._buffer if hasattr(batcher, "_buffer") else next(iter(batcher._flushers.values())).buffer


@pytest.mark.parametrize("how", ["raises", "unhashable", "exits"])
def test_a_group_that_cannot_be_found_out_is_that_calls_error(kit: Kit, how: str) -> None:
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


def test_an_error_of_a_map_does_not_wait_for_the_next_item_to_come(coroutines: Coroutines) -> None:
    async def items() -> AsyncIterator[int]:
        yield 0
        await asyncio.Event().wait()

    async def main() -> None:
        results = f.map(items())
        with pytest.raises(ZeroDivisionError):
            await anext(results)

    f = coroutines(batch_size=1, group_by=lambda x: 1 // x)
    coroutines.run(main())


@pytest.mark.parametrize("option", ["group_by", "weight", "dedupe"])
def test_an_error_of_a_map_is_raised_in_its_place(kit: Kit, option: str) -> None:
    def fails_at_3(x: Any) -> Any:
        return 1 // (x - 3)

    options: dict[str, dict[str, Any]] = {
        "group_by": {"group_by": fails_at_3},
        "weight": {"weight": lambda x: abs(fails_at_3(x)), "max_weight": 9},
    }
    f = kit(echo, batch_size=2, **options.get(option, {"dedupe": True}))
    results = kit.map(f, [1, 2, [] if option == "dedupe" else 3, 4, 5])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(TypeError if option == "dedupe" else ZeroDivisionError):
        next(results)
    results.close()  # type: ignore[attr-defined]
    kit.until_idle(f)
    kit.consistent(f)


class Key:
    """A group, or an item, that all hash alike, and that notes when it is called under a lock."""

    def __init__(self, kit: Kit, number: int, noted: list[str]) -> None:
        self.kit, self.number, self.noted = kit, number, noted

    def note(self, what: str) -> None:
        if self.kit.lock_is_held():
            self.noted.append(what)

    def __hash__(self) -> int:
        self.note("hash")
        return 1

    def __eq__(self, other: object) -> bool:
        self.note("eq")
        return isinstance(other, Key) and self.number == other.number

    def __del__(self) -> None:
        self.note("del")


@pytest.mark.parametrize("as_what", ["group", "constant", "item"])
def test_nothing_of_the_users_is_called_under_the_lock(kit: Kit, as_what: str) -> None:
    noted: list[str] = []
    f: Any
    if as_what == "constant":
        f = kit(embed, batch_size=2, timeout=None)
    elif as_what == "group":
        f = kit(echo, batch_size=2, timeout=None, group_by=lambda x: Key(kit, x // 4, noted))
    else:
        f = kit(echo, batch_size=2, timeout=None, dedupe=True, on_batch=lambda report: kit.lock_is_held() and 1 // 0)

    def submit(number: int) -> Any:
        if as_what == "constant":
            return kit.submit(f, number, model=Key(kit, number // 4, noted))
        return kit.submit(f, Key(kit, number // 4, noted) if as_what == "item" else number)

    for _ in range(3):
        handles = [submit(number) for number in range(32)]
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


def test_keys_that_cannot_be_compared_are_that_calls_error(kit: Kit) -> None:
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


# weight


def test_both_limits_hold_and_order_is_kept(kit: Kit) -> None:
    f = kit(echo, batch_size=3, timeout=None, weight=lambda x: x, max_weight=10)
    items = [4, 4, 4, 1, 1, 1, 10, 11, 3, 7, 8, 1]
    handles = kit.submits(f, items)
    kit.flush(f)
    assert kit.outcomes(handles) == items
    assert [x for batch in kit.batches for x in batch] == items
    assert kit.batches[:5] == [[4, 4], [4, 1, 1], [1], [10], [11]]
    for batch in kit.batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or sum(batch) <= 10
    kit.consistent(f)


def test_a_map_from_inside_keeps_to_the_limits_too(threads: Threads) -> None:
    def function(xs: list[int]) -> list[Any]:
        return [list(f.map([1, 2, 3, 4])) if x == 0 else x for x in xs]

    f = threads(function, batch_size=4, weight=lambda x: x, max_weight=5, group_by=lambda x: x % 2)
    assert f(0) == [1, 2, 3, 4]
    assert threads.batches == [[0], [1, 3], [2], [4]]


def test_a_map_from_inside_a_coroutine_keeps_to_the_limits_too(coroutines: Coroutines) -> None:
    batches: list[list[int]] = []

    async def function(xs: list[int]) -> list[Any]:
        batches.append(xs)
        return [[each async for each in f.map([1, 2, 3, 4])] if x == 0 else x for x in xs]

    f = batched(batch_size=4, weight=lambda x: x, max_weight=5, group_by=lambda x: x % 2)(function)
    assert coroutines.outcome(coroutines.start(f, 0)) == [1, 2, 3, 4]
    assert batches == [[0], [1, 3], [2], [4]]
    coroutines.close(f)


def test_what_weighs_nothing_is_bounded_by_batch_size(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, weight=lambda x: 0, max_weight=1)
    assert kit.outcomes(kit.submits(f, range(4))) == [0, 1, 2, 3]
    assert f.stats.sizes == {2: 2}


def test_a_batch_that_is_as_heavy_as_can_be_is_full(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, weight=lambda x: x, max_weight=10)
    assert kit.outcomes(kit.submits(f, [3, 7])) == [3, 7]
    assert kit.outcome(kit.start(f, 12)) == 12
    assert f.stats.reasons == {"full": 2}


def test_who_leaves_takes_his_weight_along(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, weight=lambda x: x, max_weight=10)
    first, second = kit.submits(f, [3, 6])
    assert first.cancel()
    third = kit.submit(f, 3)
    assert not second.done()
    assert not third.done()
    assert kit.outcomes([kit.submit(f, 1), second, third]) == [1, 6, 3]
    assert kit.batches == [[6, 3, 1]]


@pytest.mark.parametrize("weight", [2, 2.0, Decimal(2), Fraction(2), 0])
def test_a_weight_is_any_number(kit: Kit, weight: Any) -> None:
    f = kit(echo, batch_size=5, timeout=None, weight=lambda x: weight, max_weight=Decimal(4))
    handles = kit.submits(f, range(2))
    kit.flush(f)
    assert kit.outcomes(handles) == [0, 1]


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (math.nan, ValueError, "echo(): weight must return at least 0 and a finite number, got nan"),
        (math.inf, ValueError, "echo(): weight must return at least 0 and a finite number, got inf"),
        (-1, ValueError, "echo(): weight must return at least 0 and a finite number, got -1"),
        ("1", TypeError, "echo(): weight must return a number, got str"),
        (None, TypeError, "echo(): weight must return a number, got NoneType"),
        (True, TypeError, "echo(): weight must return a number, got bool"),
        (1j, TypeError, "echo(): weight must return a number, got complex"),
        (10**400, ValueError, "echo(): weight must return at least 0 and a finite number, got inf"),
        (Decimal("NaN"), ValueError, "echo(): weight must return at least 0 and a finite number, got nan"),
        (ZeroDivisionError("mine"), ZeroDivisionError, "mine"),
        (SystemExit("mine"), SystemExit, "mine"),
    ],
    ids=["nan", "inf", "negative", "str", "None", "bool", "complex", "huge", "Decimal", "raises", "exits"],
)
def test_a_weight_that_is_none_is_that_calls_error(
    kit: Kit, weight: Any, error: type[BaseException], message: str
) -> None:
    def weigh(x: int) -> Any:
        if x:
            return 1
        if isinstance(weight, BaseException):
            raise weight
        return weight

    f = kit(echo, batch_size=2, timeout=None, weight=weigh, max_weight=5)
    first = kit.submit(f, 1)
    with pytest.raises(error) as raised:
        kit.submit(f, 0)
    assert message in str(raised.value)
    if error is not SystemExit:
        assert isinstance(kit.outcome(kit.start(f, 0)), error)
    assert kit.outcomes([first, kit.submit(f, 2)]) == [1, 2]
    assert f.stats.accepted == 2


# dedupe


def test_equal_items_of_a_batch_are_sent_once(kit: Kit) -> None:
    f = kit(echo, batch_size=5, timeout=None, dedupe=True)
    assert kit.outcomes(kit.submits(f, [1, 2, 1, 1, 2])) == [1, 2, 1, 1, 2]
    assert kit.outcomes(kit.submits(f, [1, 3, 3, 4, 4])) == [1, 3, 3, 4, 4]
    assert kit.batches == [[1, 2], [1, 3, 4]]  # nothing is cached
    assert f.stats.sizes == {5: 2}
    kit.consistent(f)


def test_equal_rows_of_columns_are_sent_once(kit: Kit) -> None:
    f = kit(pairs, batch_size=3, timeout=None, dedupe=True)
    assert kit.outcomes([kit.submit(f, 1, 2), kit.submit(f, 1, 3), kit.submit(f, 1, ys=2)]) == [(1, 2), (1, 3), (1, 2)]
    assert kit.calls == [(([1, 1], [2, 3]), {})]


@pytest.mark.parametrize("who", [0, 1, 2])
@pytest.mark.parametrize("when", ["waiting", "running"])
def test_one_that_is_cancelled_leaves_its_equals(kit: Kit, who: int, when: str) -> None:
    f = kit(echo, gated=True, batch_size=4, timeout=None, dedupe=True)
    handles = kit.submits(f, [1, 1, 1])
    if when == "waiting":
        assert handles[who].cancel()
    kit.flush(f)
    kit.until_runs(1)
    assert kit.batches == [[1]]
    if when == "running":
        assert handles[who].cancel()
    kit.go_on()
    outcomes = kit.outcomes(handles)
    assert outcomes[:who] + outcomes[who + 1 :] == [1, 1]
    assert handles[who].cancelled()
    kit.until_idle(f)
    kit.consistent(f)


def test_an_unhashable_item_is_that_calls_error(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, dedupe=True)
    first = kit.submit(f, 1)
    error = kit.outcome(kit.start(f, []))
    assert (type(error), str(error)) == (TypeError, "unhashable type: 'list'")
    with pytest.raises(TypeError, match="unhashable"):
        kit.submit(f, {})
    assert kit.outcomes([first, kit.submit(f, 1)]) == [1, 1]
    assert kit.batches == [[1]]


def test_without_dedupe_an_item_need_not_be_hashable(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, group_by=len)
    assert kit.outcomes(kit.submits(f, [[], []])) == [[], []]


def test_items_that_cannot_be_compared_are_each_sent(kit: Kit) -> None:
    class Hostile:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    f = kit(echo, batch_size=3, timeout=None, dedupe=True)
    items = [Hostile(), Hostile(), 5]
    assert [x is y for x, y in zip(kit.outcomes(kit.submits(f, items)), items, strict=True)] == [True] * 3


def test_an_item_whose_comparison_exits_fails_its_batch_and_no_other(kit: Kit) -> None:
    class Hostile:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise SystemExit

    f = kit(echo, batch_size=3, timeout=None, dedupe=True)
    errors = kit.outcomes(kit.submits(f, [1, Hostile(), 2]))
    assert [type(error) for error in errors] == [BatchError] * 3
    assert kit.outcomes(kit.submits(f, [1, 2, 3])) == [1, 2, 3]
    kit.consistent(f)


def raises(xs: list[int]) -> list[int]:
    raise ValueError(len(xs))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda xs: {x: -x for x in xs}, [-1, -2, -1, -3, -2]),
        (lambda xs: {1: -1, 3: -3}, [-1, MissingResultError, -1, -3, MissingResultError]),
        (lambda xs: (-x for x in xs), [-1, -2, -1, -3, -2]),
        (lambda xs: iter(xs[:1]), [1, ResultCountError, 1, ResultCountError, ResultCountError]),
        (lambda xs: [*xs, 4, 5], [ResultCountError] * 5),
        (lambda xs: [KeyError(x) if x == 2 else -x for x in xs], [-1, KeyError, -1, -3, KeyError]),
        (lambda xs: None, [TypeError] * 5),
        (raises, [ValueError] * 5),
        (lambda xs: exit(), [BatchError] * 5),
    ],
    ids=["mapping", "missing", "generator", "early", "many", "exceptions", "None", "raises", "exits"],
)
def test_equal_items_get_the_same_answer_whatever_the_function_does(
    kit: Kit, function: Callable[[list[int]], Any], expected: list[Any]
) -> None:
    f = kit(function, batch_size=5, timeout=None, dedupe=True)
    outcomes = kit.outcomes(kit.submits(f, [1, 2, 1, 3, 2]))
    assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == expected
    errors = [each for each in outcomes if isinstance(each, Exception)]
    assert len({id(error) for error in errors}) == len(errors)  # each caller has its own
    assert kit.batches == [[1, 2, 3]]
    kit.consistent(f)


def test_the_count_of_results_is_that_of_what_was_sent(kit: Kit) -> None:
    f = kit(lambda xs: [0] * 3, batch_size=3, timeout=None, dedupe=True)
    errors = kit.outcomes(kit.submits(f, [1, 1, 1]))
    assert {str(error) for error in errors} == {
        "<lambda>() returned 3 results for 1 item; it must return one result per item, in the same order"
    }


def test_equal_items_of_a_batch_that_leaves_the_process_are_sent_once(threads: Threads) -> None:
    with ThreadPoolExecutor(1) as pool:
        for work, expected in ((negate, [-1, -1, -2]), (raises, [ValueError] * 3)):

            def function(xs: list[int], /) -> Future[list[int]]:
                return pool.submit(work, xs)  # noqa: B023 - all is answered before the next turn

            f = threads(function, batch_size=3, timeout=None, dedupe=True, isolate=True)
            outcomes = threads.outcomes(threads.submits(f, [1, 1, 2]))
            assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == expected
            threads.until_idle(f)
            threads.consistent(f)
    assert threads.batches == [[1, 2], [1, 2], [1], [2]]


# isolate


def refuses_bad(bad: set[int], tried: list[int] | None = None) -> Callable[[list[int]], list[int]]:
    def function(xs: list[int]) -> list[int]:
        found = [x for x in xs if x in bad]
        if found:
            raise ValueError(found)
        return [-x for x in xs]

    return function


@pytest.mark.parametrize("bad", [{0}, {7}, {3}, {0, 7}, {2, 3, 4}, set(), set(range(8))], ids=str)
def test_only_the_caller_of_a_bad_item_gets_the_error(kit: Kit, bad: set[int]) -> None:
    f = kit(refuses_bad(bad), batch_size=8, timeout=None, isolate=True)
    outcomes = kit.outcomes(kit.submits(f, range(8)))
    for item, outcome in enumerate(outcomes):
        if item in bad:
            assert (type(outcome), outcome.args) == (ValueError, ([item],))
        else:
            assert outcome == -item
    assert len(kit.batches) <= 2 * 8 - 1
    assert len(kit.batches) == 1 or len(bad) > 0
    if bad == set(range(8)):
        assert len(kit.batches) == 15
    kit.until_idle(f)
    kit.consistent(f)
    assert f.stats.reasons.get("isolate", 0) == len(kit.batches) - 1
    assert (f.stats.failed, f.stats.answered) == (len(bad), 8 - len(bad))


def test_parts_are_run_before_all_that_waits(kit: Kit) -> None:
    f = kit(refuses_bad({1}), gated=True, batch_size=4, timeout=0.0, isolate=True)
    handles = [kit.busy(f, 9), *kit.submits(f, [1, 2, 3, 4, 5, 6, 7, 8])]
    kit.go_on(20)
    kit.outcomes(handles)
    assert kit.batches == [[9], [1, 2, 3, 4], [1, 2], [1], [2], [3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_is_not_split(kit: Kit, error: type[BaseException]) -> None:
    def function(xs: list[int]) -> list[int]:
        raise error

    f = kit(function, batch_size=4, timeout=None, isolate=True)
    handles = kit.submits(f, range(4))
    if kit.kind == "coroutines" and error in (SystemExit, KeyboardInterrupt):
        kit.turn()  # type: ignore[attr-defined]
    assert [type(each) for each in kit.outcomes(handles)] == [BatchError] * 4
    assert len(kit.batches) == 1
    kit.until_idle(f)
    kit.consistent(f)


@pytest.mark.parametrize("returned", [[1], None, iter([1]), {}], ids=["few", "None", "early", "missing"])
def test_wrong_results_are_not_split(kit: Kit, returned: Any) -> None:
    f = kit(lambda xs: returned, batch_size=4, timeout=None, isolate=True)
    kit.outcomes(kit.submits(f, range(4)))
    assert len(kit.batches) == 1
    kit.until_idle(f)
    kit.consistent(f)


def test_a_generator_that_raises_midway_keeps_what_it_yielded(kit: Kit) -> None:
    def function(xs: list[int]) -> Iterator[int]:
        for x in xs:
            if x in (2, 6):
                raise ValueError(x)
            yield -x

    f = kit(function, batch_size=8, timeout=None, isolate=True)
    outcomes = kit.outcomes(kit.submits(f, range(8)))
    assert [each.args[0] if isinstance(each, ValueError) else each for each in outcomes] == [
        0,
        -1,
        2,
        -3,
        -4,
        -5,
        6,
        -7,
    ]
    assert kit.batches[0] == list(range(8))
    assert len(kit.batches) <= 15
    assert not any(set(batch) & {0, 1} for batch in kit.batches[1:])
    kit.until_idle(f)
    kit.consistent(f)


def test_isolate_keeps_columns_constants_and_equals(kit: Kit) -> None:
    def function(xs: list[int], ys: list[int], *, plus: int) -> list[int]:
        return [plus + x // y for x, y in zip(xs, ys, strict=True)]

    f = kit(function, batch_size=5, timeout=None, isolate=True, dedupe=True)
    rows = [(6, 3), (1, 0), (6, 3), (8, 2), (1, 0)]
    outcomes = kit.outcomes([kit.submit(f, *row, plus=10) for row in rows])
    assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == [
        12,
        ZeroDivisionError,
        12,
        14,
        ZeroDivisionError,
    ]
    assert all(constants == {"plus": 10} for _, constants in kit.calls)
    assert len(kit.calls) <= 2 * 3 - 1
    kit.until_idle(f)
    kit.consistent(f)


@pytest.mark.parametrize("engine", ["pool", "at once", "dropped"])
def test_a_batch_whose_future_fails_is_split(threads: Threads, engine: str) -> None:
    pool = ThreadPoolExecutor(2)

    def function(xs: list[int]) -> Any:
        if engine == "pool":
            return pool.submit(refuses_bad({2}), xs)
        future: Future[list[int]] = Future()
        if 2 not in xs:
            future.set_result([-x for x in xs])
        elif engine == "at once":
            future.set_exception(ValueError([2]))
        return future

    f = threads(function, batch_size=5, timeout=None, isolate=True)
    with pool:
        outcomes = threads.outcomes(threads.submits(f, range(5)))
    assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == [
        0,
        -1,
        BatchError if engine == "dropped" else ValueError,
        -3,
        -4,
    ]
    assert len(threads.batches) <= 9
    threads.until_idle(f)
    threads.consistent(f)


def test_calls_behind_a_future_that_was_dropped_are_answered(threads: Threads) -> None:
    f = threads(lambda xs: Future(), batch_size=1)
    assert [type(error) for error in threads.outcomes(threads.submits(f, range(3)))] == [BatchError] * 3


def test_a_batch_from_inside_is_split_too(threads: Threads) -> None:
    def function(xs: list[Any]) -> list[Any]:
        if xs == ["all"]:
            futures = [f.submit(x) for x in range(4)]
            mapped = f.map([5, 6, 7, 8])
            got = [next(mapped), next(mapped)]
            with pytest.raises(ZeroDivisionError):
                next(mapped)
            with pytest.raises(ZeroDivisionError):
                f(7)
            return [[*got, *(threads.outcome(future) for future in futures)]]
        return [x + 0 * (1 // (x - 7)) for x in xs]

    f = threads(function, batch_size=4, isolate=True)
    assert threads.outcome(threads.start(f, "all")) == [5, 6, 0, 1, 2, 3]
    assert [5, 6, 7, 8] in threads.batches
    threads.consistent(f)


def test_a_batch_from_inside_that_leaves_the_process_is_split_too(threads: Threads) -> None:
    def function(xs: list[Any]) -> Any:
        if xs != ["all"]:
            return pool.submit(refuses_bad({2}), xs)
        results = f.map([0, 1, 2, 3])
        got = [next(results), next(results)]
        with pytest.raises(ValueError, match="2"):
            next(results)
        return [got]

    with ThreadPoolExecutor(1) as pool:
        f = threads(function, batch_size=4, isolate=True)
        assert threads.outcome(threads.start(f, "all")) == [0, -1]
        threads.until_idle(f)
        threads.consistent(f)
    assert threads.batches == [["all"], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]


def test_a_batch_from_inside_a_coroutine_is_split_too(coroutines: Coroutines) -> None:
    async def function(xs: list[Any]) -> list[Any]:
        batches.append(xs)
        if xs == ["all"]:
            got: list[Any] = []
            results = f.map([5, 6, 7, 8])
            got += [await anext(results), await anext(results)]
            with pytest.raises(ZeroDivisionError):
                await anext(results)
            with pytest.raises(ZeroDivisionError):
                await f(7)
            return [got]
        return [x + 0 * (1 // (x - 7)) for x in xs]

    batches: list[Any] = []
    f = batched(batch_size=4, isolate=True)(function)
    assert coroutines.outcome(coroutines.start(f, "all")) == [5, 6]
    assert [5, 6, 7, 8] in batches
    coroutines.consistent(f)
    coroutines.close(f)


def test_who_leaves_while_parts_wait_leaves_the_others(kit: Kit) -> None:
    f = kit(refuses_bad({0}), gated=True, batch_size=4, timeout=None, isolate=True)
    handles = kit.submits(f, range(4))
    kit.until_runs(1)
    kit.go_on()
    kit.until_runs(2)
    assert handles[3].cancel()
    assert f.stats.running == 4
    kit.go_on(10)
    assert kit.outcomes(handles[1:3]) == [-1, -2]
    assert type(kit.outcome(handles[0])) is ValueError
    kit.until_idle(f)
    kit.consistent(f)


def test_close_waits_for_all_parts(kit: Kit) -> None:
    f = kit(refuses_bad({0, 1, 2, 3}), batch_size=4, timeout=None, isolate=True)
    handles = kit.submits(f, range(4))
    kit.close(f)
    assert all(handle.done() for handle in handles)
    assert [type(each) for each in kit.outcomes(handles)] == [ValueError] * 4
    kit.consistent(f)


# concurrency


@pytest.mark.parametrize("n", [1, 2, 3])
def test_so_many_batches_run_at_once_and_no_more(kit: Kit, n: int) -> None:
    f = kit(gated=True, batch_size=2, timeout=0.0, concurrency=n)
    handles = []
    for number in range(n):
        handles.append(kit.submit(f, number))
        kit.until_runs(number + 1)
    assert f.stats.in_flight == n
    handles += kit.submits(f, range(10, 13))  # late cutting: they go on joining
    assert (f.stats.pending, len(kit.calls)) == (3, n)
    kit.go_on(1)
    kit.until_runs(n + 1)
    assert kit.batches[n] == [10, 11]
    kit.go_on(10)
    assert kit.outcomes(handles) == [-item for item in (*range(n), 10, 11, 12)]
    assert kit.most == n
    kit.until_idle(f)
    kit.consistent(f)


@pytest.mark.parametrize("n", [2, 4])
def test_full_batches_that_come_together_run_together(kit: Kit, n: int) -> None:
    f = kit(gated=True, batch_size=2, timeout=None, concurrency=n)
    handles = kit.submits(f, range(2 * n + 4))
    kit.until(lambda: kit.running == n)
    kit.go_on(n + 2)
    assert kit.outcomes(handles) == [-item for item in range(2 * n + 4)]
    assert sorted(kit.batches) == [[item, item + 1] for item in range(0, 2 * n + 4, 2)]
    assert kit.most == n


def test_with_1_it_is_always_the_same_thread(threads: Threads) -> None:
    f = threads(batch_size=2, concurrency=1, isolate=True)
    assert sorted(in_threads(f, range(40))) == sorted(-item for item in range(40))
    assert (threads.most, len(threads.idents)) == (1, 1)


def test_a_thread_is_hired_only_when_one_is_missing(threads: Threads) -> None:
    f = threads(batch_size=2, concurrency=8)
    for number in range(20):
        assert f(number) == -number
    flush_thread(f)
    assert len(threads.idents) == 1


def test_functions_that_return_futures_need_one_thread(threads: Threads) -> None:
    pending: list[tuple[list[int], Future[list[int]]]] = []

    def function(xs: list[int]) -> Any:
        pending.append((xs, Future()))
        return pending[-1][1]

    f = threads(function, batch_size=1, concurrency=3)
    handles = []
    for number in range(3):
        handles.append(f.submit(number))
        threads.until_runs(number + 1)
    assert f.stats.in_flight == 3
    handles += threads.submits(f, [3, 4])
    flush_thread(f)
    for number in range(5):
        xs, future = pending[number]
        future.set_result([-x for x in xs])
        threads.until_runs(min(number + 4, 5))
    assert threads.outcomes(handles) == [0, -1, -2, -3, -4]
    flush_thread(f)
    assert len(threads.idents) == 1
    threads.until_idle(f)
    threads.consistent(f)


def test_a_function_that_returns_futures_and_then_blocks_still_runs_so_often_at_once(threads: Threads) -> None:
    blocks = False

    def function(xs: list[int]) -> Any:
        if blocks:
            gate.wait(100)
            return xs
        future: Future[list[int]] = Future()
        future.set_result(xs)
        return future

    gate = threading.Event()
    f = threads(function, batch_size=1, concurrency=2)
    assert f(1) == 1
    blocks = True
    gate.set()
    assert f(2) == 2
    gate.clear()
    handles = threads.submits(f, [3, 4])
    threads.until(lambda: threads.running == 2)
    gate.set()
    assert threads.outcomes(handles) == [3, 4]


def test_a_function_that_comes_to_return_futures_needs_one_thread_again(threads: Threads) -> None:
    gate = threading.Event()

    def function(xs: list[int]) -> Any:
        if xs[0] < 2:
            gate.wait(100)
            return xs
        future: Future[list[int]] = Future()
        future.set_result(xs)
        return future

    f = threads(function, batch_size=1, concurrency=2)
    handles = threads.submits(f, [0, 1])
    threads.until(lambda: threads.running == 2)
    gate.set()
    assert threads.outcomes(handles) == [0, 1]
    for item in range(2, 6):
        assert f(item) == item
    threads.until(lambda: len(f._self_batcher._threads) == 1)
    assert f(6) == 6


@pytest.mark.parametrize("how", ["call", "submit", "aio", "map"])
def test_whoever_comes_while_the_function_is_busy_hires_a_thread(threads: Threads, how: str) -> None:
    f = threads(gated=True, batch_size=1, concurrency=2)
    busy = threads.busy(f, 0)
    with ThreadPoolExecutor(1) as pool:
        ways: dict[str, Callable[[], Any]] = {
            "call": lambda: f(1),
            "submit": lambda: f.submit(1).result(),
            "aio": lambda: asyncio.run(f.aio(1)),
            "map": lambda: next(f.map([1])),
        }
        answer = pool.submit(ways[how])
        threads.until(lambda: threads.running == 2)
        threads.go_on(2)
        assert answer.result() == -1
    assert threads.outcome(busy) == 0


@pytest.mark.parametrize("how", ["flush", "batch_size", "timeout"])
def test_what_is_made_due_while_the_function_is_busy_hires_a_thread(threads: Threads, how: str) -> None:
    f = threads(gated=True, batch_size=2, timeout=None, concurrency=2)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    if how == "flush":
        f.flush()
    else:
        setattr(f, how, {"batch_size": 1, "timeout": 0.0}[how])
    threads.until(lambda: threads.running == 2)
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]


def test_one_of_the_threads_that_sleep_wakes_by_itself(threads: Threads) -> None:
    f = threads(gated=True, batch_size=1, timeout=10**6, concurrency=3)
    handles = threads.submits(f, range(3))
    threads.until(lambda: threads.running == 3)
    threads.go_on(3)
    assert threads.outcomes(handles) == [0, -1, -2]
    sleep = f._self_batcher._asleep
    threads.until(lambda: len(sleep) == 3)
    assert sorted(sleep.values())[1:] == [math.inf, math.inf]


def one_at_an_engine_and_one_done(threads: Threads, f: Any) -> list[Future[Any]]:
    """Submit 0, for which the function returns a future, and then 1, for which it does not, until a thread sleeps."""
    batcher = f._self_batcher
    handles = [f.submit(0)]
    threads.until(lambda: not batcher._blocks)
    handles.append(f.submit(1))
    threads.until(lambda: batcher._blocks and bool(batcher._asleep))
    return handles


def test_a_future_that_is_done_makes_room_for_a_batch_beside_one_that_blocks(threads: Threads) -> None:
    engine: Future[list[int]] = Future()
    gate = threading.Event()

    def function(xs: list[int]) -> Any:
        if xs == [0]:
            return engine
        if xs != [1]:
            gate.wait(100)
        return xs

    f = threads(function, batch_size=1, concurrency=2)
    handles = one_at_an_engine_and_one_done(threads, f)
    handles += threads.submits(f, [2, 3])
    threads.until_runs(3)
    engine.set_result([0])
    threads.until_runs(4)
    gate.set()
    assert threads.outcomes(handles) == [0, 1, 2, 3]


def test_a_future_that_is_done_hires_nobody_where_nothing_waits(threads: Threads) -> None:
    engine: Future[list[int]] = Future()
    gate = threading.Event()

    def function(xs: list[int]) -> Any:
        if xs == [2]:
            gate.wait(100)
        return engine if xs == [0] else xs

    f = threads(function, batch_size=1, concurrency=3)
    handles = one_at_an_engine_and_one_done(threads, f)
    handles.append(f.submit(2))
    threads.until_runs(3)
    engine.set_result([0])
    flush_thread(f)
    gate.set()
    assert threads.outcomes(handles) == [0, 1, 2]


def test_the_halves_of_a_future_that_fails_are_run_by_who_sleeps_though_there_was_room(threads: Threads) -> None:
    engine: Future[list[int]] = Future()
    f = threads(lambda xs: engine if len(xs) == 2 else xs, batch_size=2, timeout=None, isolate=True, concurrency=2)
    handles = threads.submits(f, [0, 1])
    threads.until(lambda: f.stats.in_flight == 1 and bool(f._self_batcher._asleep))
    engine.set_exception(ValueError())
    assert threads.outcomes(handles) == [0, 1]


def test_who_comes_while_a_future_is_returned_hires_nobody(threads: Threads) -> None:
    hired: list[int] = []

    class Done(Future[Any]):
        def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
            if not hired:
                handles.extend(in_threads(f.submit, [1]))
                hired.append(len(f._self_batcher._threads))
            super().add_done_callback(callback)

    def function(xs: list[int]) -> Any:
        future = Done()
        future.set_result(xs)
        return future

    f = threads(function, batch_size=1, concurrency=2)
    handles: list[Any] = []
    first = f.submit(0)
    assert threads.outcome(first) == 0
    assert hired == [1]
    assert threads.outcomes(handles) == [1]


def test_what_waits_is_timed_though_the_thread_that_looks_at_it_ends(threads: Threads) -> None:
    """One thread is enough for a function that returns futures: the other one must wake up, and sleep until then."""
    engines: dict[int, Future[list[int]]] = {0: Future(), 1: Future()}
    gate = threading.Event()

    def function(xs: list[int]) -> Any:
        gate.wait(100)
        return engines.get(xs[0], xs)

    f = threads(function, batch_size=2, timeout=0.2, concurrency=2)
    handles = [threads.busy(f, 0), threads.busy(f, 1)]
    gate.set()
    threads.until(lambda: f.stats.in_flight == len(f._self_batcher._asleep) == 2)
    handles.append(f.submit(2))
    engines[0].set_result([0])
    assert threads.outcomes([handles[0], handles[2]]) == [0, 2]
    engines[1].set_result([1])
    assert threads.outcome(handles[1]) == 1


def test_a_smaller_batch_size_makes_a_group_due_that_is_not_the_oldest(threads: Threads) -> None:
    f = threads(echo, batch_size=3, timeout=None, group_by=lambda x: x % 2)
    handles = threads.submits(f, [1, 2, 4])
    f.batch_size = 2
    assert threads.outcomes(handles[1:]) == [2, 4]
    assert not handles[0].done()
    f.flush()
    assert threads.outcome(handles[0]) == 1


def test_the_halves_of_a_batch_run_at_once(threads: Threads) -> None:
    together = threading.Barrier(2)

    def function(xs: list[int]) -> list[int]:
        if len(xs) == 2:
            raise ValueError
        together.wait(100)
        return xs

    f = threads(function, batch_size=2, timeout=None, concurrency=2, isolate=True)
    assert threads.outcomes(threads.submits(f, [1, 2])) == [1, 2]


def test_close_waits_for_a_future_though_another_one_might_run_beside_it(threads: Threads) -> None:
    future: Future[list[int]] = Future()
    f = threads(lambda xs: future, batch_size=1, concurrency=2)
    handle = f.submit(1)
    threads.until_runs(1)
    closer = threading.Thread(target=f.close)
    closer.start()
    threads.until(lambda: f._self_batcher._has_no_room or not closer.is_alive())
    assert closer.is_alive()
    future.set_result([2])
    closer.join()
    assert handle.result() == 2


def test_close_waits_for_all_that_run_at_once(kit: Kit) -> None:
    f = kit(gated=True, batch_size=1, timeout=0.0, concurrency=3)
    handles = kit.submits(f, range(5))
    kit.until(lambda: kit.running == 3)
    kit.go_on(5)
    kit.close(f)
    assert all(handle.done() for handle in handles)
    assert kit.outcomes(handles) == [0, -1, -2, -3, -4]
    kit.consistent(f)


@pytest.mark.thread_unsafe(reason="counts the threads of the whole process")
@pytest.mark.parametrize("how", ["dropped", "closed", "dropped while it runs"])
def test_all_threads_of_a_function_end_with_it(threads: Threads, how: str) -> None:
    f = threads(gated=True, batch_size=1, concurrency=4)
    handles = threads.submits(f, range(4))
    threads.until(lambda: threads.running == 4)
    mine = list(f._self_batcher._threads.values())
    assert len(mine) == 4
    gone = weakref.ref(f._self_batcher)
    if how != "dropped while it runs":
        threads.go_on(4)
        assert threads.outcomes(handles) == [0, -1, -2, -3]
    if how == "closed":
        f.close()
        assert not any(thread.is_alive() for thread in mine)
    del f
    threads.made.clear()
    threads.go_on(4)
    assert threads.outcomes(handles) == [0, -1, -2, -3]

    def all_gone() -> bool:
        gc.collect()
        return gone() is None and not any(thread.is_alive() for thread in mine)

    threads.until(all_gone)


def test_close_waits_for_the_threads_that_are_hired_meanwhile(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[threading.Thread] = []

    class Noted(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            joined.append(self)
            super().join(timeout)

    monkeypatch.setattr(threads_module, "Thread", Noted)
    f = threads(gated=True, batch_size=2, timeout=None, concurrency=2)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    closer = threading.Thread(target=f.close)
    closer.start()
    threads.until(lambda: threads.running == 2)
    threads.go_on(2)
    closer.join()
    assert threads.outcomes(handles) == [0, -1]
    assert {thread.ident for thread in joined} == threads.idents


def test_a_thread_that_is_hired_and_has_not_looked_yet_is_not_missing(threads: Threads) -> None:
    f = threads(gated=True, batch_size=1, concurrency=3)
    handles = [threads.busy(f, 0)]
    batcher = f._self_batcher
    step, looked, look = batcher._next, threading.Event(), threading.Event()

    def late(*, flushed: bool) -> Any:
        looked.set()
        look.wait(100)
        return step(flushed=flushed)

    batcher._next = late
    handles.append(f.submit(1))
    looked.wait(100)
    f.flush()
    assert len(batcher._threads) == 2
    look.set()
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]


def test_who_was_missing_is_not_once_another_one_has_looked(threads: Threads) -> None:
    f = threads(batch_size=1, concurrency=2)
    batcher, late = f._self_batcher, list[Any]()
    step = batcher._next

    def submit_and_look(*, flushed: bool) -> Any:
        if flushed and not late:
            with threads_module._lock:  # as in a finalizer, which hires nobody
                late.append(f.submit(1))
        return step(flushed=flushed)

    batcher._next = submit_and_look
    assert f(0) == 0
    threads.until(lambda: len(late) == 1)
    assert threads.outcomes(late) == [-1]
    flush_thread(f)


@pytest.mark.parametrize("what", ["it exits", "the main thread has ended"])
def test_at_exit_nobody_is_hired(
    what: str, threads: Threads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From Python 3.12 on, no thread can be started then; that is nothing to complain of."""
    f = threads(gated=True, batch_size=1, concurrency=2)
    handles = [threads.busy(f, 0)]
    if what == "it exits":
        monkeypatch.setattr(threads_module, "_exiting", True)
    else:
        monkeypatch.setattr(threads_module, "main_thread", threading.Thread)
    handles.append(f.submit(1))
    flush_thread(f)
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]
    flush_thread(f)
    assert not caplog.records


def test_a_hired_thread_that_wakes_late_is_not_lost(threads: Threads) -> None:
    """1. A thread is hired and rung for. 2. Before it looks who for, another one, rung for again, looks for both."""
    arrived, late, looked, known = threading.Event(), threading.Event(), threading.Event(), set[int]()

    class Handed(list[Any]):
        def pop(self, *position: Any) -> Any:
            if threading.get_ident() not in known and len(known) == 1:
                known.add(threading.get_ident())
                arrived.set()  # the second one stops here: it has heard the bell, but does not know whose it is
                late.wait(100)
                looked.set()
            known.add(threading.get_ident())
            return super().pop(*position)

    f = threads(gated=True, batch_size=1, concurrency=2)
    f._self_batcher._handed = Handed()
    handles = threads.submits(f, [0, 1])
    assert arrived.wait(100)
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]
    batcher = f._self_batcher
    threads.until(lambda: f.stats.in_flight == 0 and len(batcher._asleep) == len(batcher._threads))
    threads.go_on(1)
    assert f(2) == -2  # the first thread is rung for, and looks
    threads.until(lambda: f.stats.in_flight == 0 and len(batcher._asleep) == len(batcher._threads))
    late.set()
    assert looked.wait(100)
    handles = threads.submits(f, [3, 4])
    threads.until(lambda: threads.running == 2)
    threads.go_on(2)
    assert threads.outcomes(handles) == [-3, -4]
    assert all(thread.is_alive() for thread in batcher._threads.values())


def test_where_no_thread_can_be_hired_those_that_there_are_do_it(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    f = threads(gated=True, batch_size=1, concurrency=2)
    handles = [threads.busy(f, 0)]

    attempts: list[threading.Thread] = []

    class Refused(threading.Thread):
        def start(self) -> None:
            attempts.append(self)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads_module, "Thread", Refused)
    handles += threads.submits(f, [1, 2])
    assert len(attempts) == 1
    threads.go_on(3)
    assert threads.outcomes(handles) == [0, -1, -2]
    assert threads.most == 1
    assert len(attempts) > 1
    assert [record.message for record in caplog.records] == ["negate() runs fewer batches at once than it might"]
    monkeypatch.undo()
    handles = threads.submits(f, [3, 4])
    threads.until(lambda: threads.running == 2)
    threads.go_on(2)
    assert threads.outcomes(handles) == [-3, -4]


def test_calls_from_inside_are_answered_for_any_concurrency(threads: Threads) -> None:
    def function(xs: list[int]) -> list[int]:
        return [x if x < 2 else f(x - 1) + f(x - 2) for x in xs]

    f = threads(function, batch_size=2, concurrency=3, isolate=True, dedupe=True, max_pending=4)
    assert in_threads(f, range(10)) == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    threads.until_idle(f)
    threads.consistent(f)


def test_a_forked_child_of_a_concurrent_function_starts_clean() -> None:
    script = """
import os, threading
from batchify import batched

gate, entered = threading.Event(), threading.Semaphore(0)

@batched(batch_size=1, concurrency=3, max_pending=2, isolate=True, group_by=lambda x: x % 2, dedupe=True)
def f(xs):
    if os.getpid() == parent:
        entered.release()
        gate.wait()
    elif xs == [13]:
        raise ValueError
    return [-x for x in xs]

parent = os.getpid()
running = [f.submit(x) for x in range(2)]
for _ in running: entered.acquire()
running.append(f.submit(2)); entered.acquire()
waiting = [f.submit(x) for x in (3, 4)]
blocked = threading.Thread(target=f, args=(5,)); blocked.start()
while f.stats.blocked == 0: pass
pid = os.fork()
if pid == 0:
    stats = f.stats
    assert (stats.accepted, stats.blocked, stats.in_flight) == (0, 0, 0), stats
    try:
        f(13)
    except ValueError:
        pass
    assert list(f.map(range(10))) == [-x for x in range(10)]
    assert threading.active_count() <= 4
    f.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
gate.set()
blocked.join()
assert [future.result() for future in running + waiting] == [0, -1, -2, -3, -4]
f.close()
"""
    run_script(script, "-W", "ignore::DeprecationWarning")


# max_pending, on_full


def test_submit_never_waits_for_room(kit: Kit) -> None:
    for on_full in ("wait", "raise"):
        f = kit(gated=True, batch_size=2, timeout=0.0, max_pending=2, on_full=on_full)
        handles = [kit.busy(f, 0), *kit.submits(f, [1, 2])]
        with pytest.raises(BufferFullError) as raised:
            kit.submit(f, 3)
        assert str(raised.value) == "negate() is full: max_pending=2 items wait"
        assert (f.stats.pending, f.stats.accepted, f.stats.blocked) == (2, 3, 0)
        kit.go_on(2)
        assert kit.outcomes(handles) == [0, -1, -2]
        handle = kit.submit(f, 4)
        kit.go_on(1)
        assert kit.outcome(handle) == -4
        kit.consistent(f)


def test_with_raise_a_call_does_not_wait_for_room_either(kit: Kit) -> None:
    f = kit(gated=True, batch_size=2, timeout=0.0, max_pending=1, on_full="raise")
    handles = [kit.busy(f, 0), kit.start(f, 1)]
    error = kit.outcome(kit.start(f, 2))
    assert (type(error), str(error)) == (BufferFullError, "negate() is full: max_pending=1 items wait")
    kit.go_on(2)
    assert kit.outcomes(handles) == [0, -1]
    kit.consistent(f)


def test_room_is_given_in_order_of_arrival(kit: Kit) -> None:
    f = kit(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [kit.busy(f, 0), kit.submit(f, 1)]
    for number in range(2, 7):
        handles.append(kit.start(f, number))
        kit.until_waits(f, blocked=number - 1)
    assert (f.stats.pending, f.stats.accepted) == (1, 2)
    with pytest.raises(BufferFullError):
        kit.submit(f, 9)
    for number in range(1, 7):
        kit.go_on()
        kit.until_runs(number + 1)
        assert f.stats.pending <= 1
    kit.go_on()
    assert kit.outcomes(handles) == [-item for item in range(7)]
    assert kit.batches == [[item] for item in range(7)]
    kit.until_idle(f)
    kit.consistent(f)


def test_who_cancels_gives_his_room_to_the_next(kit: Kit) -> None:
    f = kit(gated=True, batch_size=4, timeout=0.0, max_pending=2)
    handles = [kit.busy(f, 0), *kit.submits(f, [1, 2]), kit.start(f, 3)]
    assert f.stats.blocked == 1
    assert handles[1].cancel()
    kit.until_waits(f, pending=2, blocked=0)
    kit.go_on(2)
    assert kit.outcomes([handles[0], handles[2], handles[3]]) == [0, -2, -3]
    assert kit.batches == [[0], [2, 3]]


def test_who_leaves_while_it_waits_for_room_is_forgotten(coroutines: Coroutines) -> None:
    f = coroutines(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [coroutines.busy(f, 0), coroutines.submit(f, 1)]
    leaving, staying = coroutines.start(f, 2), coroutines.start(f, 3)
    assert f.stats.blocked == 2
    leaving.cancel()
    coroutines.turn()
    assert (f.stats.blocked, f.stats.cancelled, f.stats.accepted) == (1, 0, 2)
    coroutines.go_on(3)
    assert coroutines.outcomes([*handles, staying]) == [0, -1, -3]
    assert coroutines.batches == [[0], [1], [3]]


def test_aio_waits_for_room_and_may_leave(threads: Threads) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(f.aio(number)) for number in (2, 3, 4)]
        while f.stats.blocked < 3:
            await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        assert f.stats.blocked == 2
        threads.go_on(4)
        assert [await tasks[0], await tasks[2]] == [-2, -4]

    f = threads(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    asyncio.run(main())
    assert threads.outcomes(handles) == [0, -1]
    assert threads.batches == [[0], [1], [2], [4]]
    threads.until_idle(f)
    threads.consistent(f)


@pytest.mark.parametrize(
    ("on_full", "call"),
    [
        ("raise", lambda f, x: f(x)),
        ("raise", lambda f, x: asyncio.run(f.aio(x))),
        ("wait", lambda f, x: f.submit(x)),
    ],
    ids=["call", "aio", "submit"],
)
def test_who_does_not_wait_for_room_does_not_from_inside_another_function_either(
    threads: Threads, on_full: str, call: Callable[[Any, int], Any]
) -> None:
    f = threads(gated=True, batch_size=1, timeout=0.0, max_pending=1, on_full=on_full)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    outer = batched(batch_size=1)(lambda xs: [call(f, x) for x in xs])
    with pytest.raises(BufferFullError):
        outer(2)
    outer.close()
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]


def test_aio_with_raise(threads: Threads) -> None:
    f = threads(gated=True, batch_size=1, timeout=0.0, max_pending=1, on_full="raise")
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    with pytest.raises(BufferFullError):
        asyncio.run(f.aio(2))
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]


def test_who_gets_the_room_of_one_that_ctrl_c_interrupted_before_it_rang_is_answered(threads: Threads) -> None:
    f = threads(echo, batch_size=9, timeout=None, max_pending=2)
    batcher = f._self_batcher
    wake, withdraw = batcher._wake_locked, batcher.withdraw
    others = [f.submit(1)]

    def interrupted() -> None:
        batcher._wake_locked = wake
        raise KeyboardInterrupt

    def late(call: Any) -> bool:
        batcher.withdraw = withdraw
        others.append(threads.start(f, 3))
        assert f.stats.blocked == 1
        return bool(withdraw(call))

    batcher._wake_locked, batcher.withdraw = interrupted, late
    with pytest.raises(KeyboardInterrupt):
        f(2)
    assert threads.outcomes(others) == [1, 3]


def test_ctrl_c_while_waiting_for_room_is_forgotten() -> None:
    script = """
import os, signal, threading
from batchify import batched

gate = threading.Event()

@batched(batch_size=1, max_pending=1)
def f(xs):
    gate.wait()
    seen.extend(xs)
    return xs

def interrupt():
    while f.stats.blocked == 0: pass
    while not left.wait(0.01):  # again: Python does not notice one that comes just as it begins to wait
        os.kill(os.getpid(), signal.SIGINT)

def once(*_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt

left = threading.Event()
signal.signal(signal.SIGINT, once)

seen = []
running = f.submit(1)
while f.stats.running == 0: pass
waiting = f.submit(2)
threading.Thread(target=interrupt).start()
try:
    f(3)
except KeyboardInterrupt:
    left.set()
else:
    raise SystemExit("not interrupted")
assert f.stats.blocked == 0
gate.set()
f.close()
assert seen == [1, 2]
assert (f.stats.accepted, f.stats.answered, f.stats.cancelled) == (2, 2, 0)
"""
    run_script(script)


def test_close_releases_those_who_wait_for_room(kit: Kit) -> None:
    f = kit(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [kit.busy(f, 0), kit.submit(f, 1)]
    blocked = [kit.start(f, number) for number in (2, 3)]
    assert f.stats.blocked == 2
    if kit.kind == "threads":
        closing = threading.Thread(target=f.close)
        closing.start()
    else:
        closing = kit.loop.create_task(f.aclose())  # type: ignore[attr-defined]
    errors = kit.outcomes(blocked)
    assert [(type(error), str(error)) for error in errors] == [(ClosedError, "negate() is closed")] * 2
    kit.go_on(2)
    assert kit.outcomes(handles) == [0, -1]
    if kit.kind == "threads":
        closing.join()
    else:
        kit.outcome(closing)
    kit.consistent(f)
    assert kit.batches == [[0], [1]]


def test_who_is_released_by_close_counts_no_more(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
            counted.append(f.stats.blocked)
            return super().call_soon_threadsafe(*args, **options)

    async def main() -> None:
        task = asyncio.create_task(f.aio(2))
        await asyncio.sleep(0)
        assert f.stats.blocked == 1
        f._self_batcher.close(wait=False)
        with pytest.raises(ClosedError):
            await task

    f = threads(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    assert counted[0] == 0
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]


@pytest.mark.parametrize(
    "options",
    [{}, {"on_full": "raise"}, {"timeout": None}, {"group_by": lambda x: x % 7}],
    ids=["wait", "raise", "no timeout", "groups"],
)
@pytest.mark.parametrize("sized", [True, False])
def test_map_never_exceeds_the_limit_and_ends(kit: Kit, options: dict[str, Any], sized: bool) -> None:
    waiting = []

    def function(xs: list[int]) -> list[int]:
        waiting.append(f.stats.pending)
        return negate(xs)

    f = kit(function, batch_size=8, max_pending=3, **options)
    items = range(50) if sized else iter(range(50))
    assert list(kit.map(f, items)) == [-item for item in range(50)]
    assert max(waiting) <= 3
    assert all(len(batch) <= 3 for batch in kit.batches)
    kit.until_idle(f)
    kit.consistent(f)


def test_a_dropped_map_leaves_nobody_in_the_line(kit: Kit) -> None:
    f = kit(gated=True, batch_size=4, timeout=0.0, max_pending=2)
    busy = kit.busy(f, 0)
    kit.go_on(1)
    results = kit.map(f, range(1, 20))
    kit.outcome(busy)
    kit.go_on(1)
    assert next(results) == -1
    results.close()  # type: ignore[attr-defined]
    kit.go_on(10)
    kit.until_idle(f)
    kit.consistent(f)


def test_a_full_buffer_of_many_groups_is_taken(kit: Kit) -> None:
    f = kit(echo, batch_size=4, timeout=None, max_pending=3, group_by=lambda x: x % 5)
    handles = [kit.start(f, number) for number in range(5)]
    assert kit.outcomes(handles[:3]) == [0, 1, 2]
    kit.flush(f)
    assert kit.outcomes(handles) == [0, 1, 2, 3, 4]
    kit.until_idle(f)
    kit.consistent(f)


def test_a_full_buffer_below_the_limits_of_a_batch_is_taken(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, max_pending=2, weight=lambda x: 1, max_weight=5)
    assert kit.outcomes([kit.start(f, 1), kit.start(f, 2)]) == [1, 2]
    assert f.stats.sizes_by_reason == {"full": {2: 1}}


def test_map_of_an_async_iterable_heeds_the_limit(coroutines: Coroutines) -> None:
    async def numbers() -> Any:
        for number in range(30):
            yield number

    async def main() -> list[int]:
        return [each async for each in f.map(numbers())]

    def function(xs: list[int]) -> list[int]:
        waiting.append(f.stats.pending)
        return negate(xs)

    waiting: list[int] = []
    f = coroutines(function, batch_size=8, timeout=None, max_pending=3)
    assert coroutines.run(main()) == [-item for item in range(30)]
    assert max(waiting) <= 3
    coroutines.consistent(f)


def test_a_crowd_finds_room_one_after_the_other(threads: Threads) -> None:
    f = threads(batch_size=3, max_pending=2, concurrency=2, group_by=lambda x: x % 3)
    assert in_threads(f, range(40)) == [-item for item in range(40)]
    threads.until_idle(f)
    threads.consistent(f)


# on_batch


def test_one_report_per_batch_before_the_callers_go_on(kit: Kit) -> None:
    reports: list[BatchReport] = []
    answered: list[bool] = []

    def hook(report: BatchReport) -> None:
        reports.append(report)
        answered.append(any(handle.done() for handle in handles))
        assert not kit.lock_is_held()

    f = kit(embed, batch_size=2, timeout=None, on_batch=hook, group_by=lambda x: "g", concurrency=2)
    handles: list[Any] = [kit.submit(f, 1, model="m")]
    handles.append(kit.submit(f, 2, model="m"))
    kit.outcomes(handles)
    (report,) = reports
    assert answered == [False]
    assert (report.name, report.size, report.batch_size, report.reason) == ("embed", 2, 2, "full")
    assert (report.group, report.pending, report.in_flight, report.error) == (("g", "m"), 0, 0, None)
    assert len(report.waits) == len(report.contexts) == 2
    assert all(wait >= 0 for wait in report.waits)
    assert report.duration >= 0
    with pytest.raises(AttributeError):
        report.size = 3  # type: ignore[misc]
    assert f.stats.answered == 2


def test_a_batch_run_in_the_midst_of_a_report_is_not_reported(threads: Threads) -> None:
    reports: list[BatchReport] = []

    def hook(report: BatchReport) -> None:
        reports.append(report)
        if len(reports) < 9:
            f(0)

    f = threads(batch_size=1, on_batch=hook)
    assert f(1) == -1
    assert [report.reason for report in reports] == ["full"]
    assert f(2) == -2
    assert [report.reason for report in reports] == ["full", "full"]
    assert f.stats.reasons == {"full": 2, "nested": 2}


def test_a_report_names_the_group_as_group_by_did(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(batch_size=2, group_by=lambda x: "g", on_batch=reports.append)
    kit.outcome(kit.submit(f, 1))
    assert [report.group for report in reports] == ["g"]


def test_waits_and_duration_are_by_the_clock(coroutines: Coroutines) -> None:
    reports: list[BatchReport] = []
    f = coroutines(gated=True, batch_size=3, timeout=2.0, on_batch=reports.append)
    handles = [coroutines.submit(f, 1)]
    coroutines.loop.moment += 0.5
    handles.append(coroutines.submit(f, 2))
    coroutines.loop.moment += 1.5
    coroutines.until_runs(1)
    waiting = coroutines.submit(f, 3)
    coroutines.loop.moment += 4.0
    coroutines.go_on()
    coroutines.outcomes(handles)
    (report,) = reports[:1]
    assert (report.waits, report.duration, report.reason) == ((2.0, 1.5), 4.0, "timeout")
    assert (report.pending, report.in_flight, report.group) == (1, 0, None)
    coroutines.go_on()
    coroutines.outcome(waiting)
    assert reports[1].waits == (4.0,)


def test_a_report_tells_of_what_waits_and_runs(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(gated=True, batch_size=1, timeout=0.0, concurrency=2, on_batch=reports.append)
    handles = [kit.submit(f, 0)]
    kit.until_runs(1)
    handles.append(kit.submit(f, 1))
    kit.until_runs(2)
    handles += kit.submits(f, [2, 3])
    kit.go_on(1)
    kit.until(lambda: len(reports) == 1)
    assert (reports[0].pending, reports[0].in_flight) == (2, 1)
    kit.go_on(3)
    kit.outcomes(handles)
    kit.until(lambda: len(reports) == 4)
    assert (reports[3].pending, reports[3].in_flight) == (0, 0)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (raises, ValueError),
        (lambda xs: exit(), SystemExit),
        (lambda xs: [1], ResultCountError),
        (lambda xs: iter([1]), ResultCountError),
        (lambda xs: None, TypeError),
        (lambda xs: [KeyError()] * 2, type(None)),
        (lambda xs: {}, type(None)),
    ],
    ids=["raises", "exits", "few", "early", "None", "exceptions", "missing"],
)
def test_a_report_tells_of_the_error_of_its_batch(kit: Kit, function: Any, error: type) -> None:
    reports: list[BatchReport] = []
    f = kit(function, batch_size=2, timeout=None, on_batch=reports.append)
    kit.outcomes(kit.submits(f, [1, 2]))
    kit.until_idle(f)
    assert [type(report.error) for report in reports] == [error]


def test_each_part_of_a_batch_that_is_split_has_its_report(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(refuses_bad({1}), batch_size=4, timeout=None, isolate=True, on_batch=reports.append)
    kit.outcomes(kit.submits(f, range(4)))
    kit.until_idle(f)
    assert [(report.reason, report.size, type(report.error)) for report in reports] == [
        ("full", 4, ValueError),
        ("isolate", 2, ValueError),
        ("isolate", 1, type(None)),
        ("isolate", 1, ValueError),
        ("isolate", 2, type(None)),
    ]
    assert f.stats.sizes_by_reason == {"full": {4: 1}, "isolate": {1: 2, 2: 2}}
    assert f.stats.accepted == 4
    kit.consistent(f)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_hook_that_raises_is_logged_and_hurts_nobody(
    kit: Kit, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def hook(report: BatchReport) -> None:
        raise error("hook")

    f = kit(batch_size=2, timeout=None, on_batch=hook)
    for _ in range(2):
        assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
    kit.until_idle(f)
    kit.consistent(f)
    said = [(record.name, record.message, record.exc_info and record.exc_info[0]) for record in caplog.records]
    assert said == [("batchify", "on_batch of negate() raised", error)] * 2


def test_contexts_are_those_of_the_callers_and_only_for_a_hook(kit: Kit) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    reports: list[BatchReport] = []
    f = kit(batch_size=3, timeout=None, on_batch=reports.append)
    handles = []
    for number in (1, 2, 3):
        context = contextvars.copy_context()
        context.run(variable.set, number)
        handles.append(context.run(kit.start if number == 2 else kit.submit, f, number))
    kit.outcomes(handles)
    if kit.kind == "threads":
        assert [context.get(variable, 0) for context in reports[0].contexts] == [1, 0, 3]  # a thread has its own
    else:
        assert [context[variable] for context in reports[0].contexts] == [1, 2, 3]


def test_a_future_keeps_no_context_after_its_answer(kit: Kit) -> None:
    class Transaction:
        pass

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    f = kit(batch_size=1, group_by=lambda x: x, on_batch=lambda report: None)
    token = variable.set(transaction := Transaction())
    future = contextvars.copy_context().run(kit.submit, f, 1)
    variable.reset(token)
    reference = weakref.ref(transaction)
    del transaction, token
    assert kit.outcome(future) == -1
    kit.until_idle(f)
    kit.until(lambda: gc.collect() >= 0 and reference() is None)
    assert kit.outcome(future) == -1


def test_without_a_hook_no_context_is_kept(kit: Kit) -> None:
    class Value:
        pass

    f = kit(batch_size=2, timeout=None, dedupe=True, group_by=lambda x: 1)
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    value = Value()
    gone = weakref.ref(value)
    context.run(variable.set, value)
    handle = context.run(kit.submit, f, 1)
    del value, context
    gc.collect()
    assert gone() is None
    kit.flush(f)
    assert kit.outcome(handle) == -1


def test_a_hook_may_call_the_function_itself(threads: Threads) -> None:
    got: list[Any] = []

    def hook(report: BatchReport) -> None:
        if report.reason != "nested":
            got.append(f(10))
            got.append(f.submit(11).result())
            got.extend(f.map([12, 13]))

    f = threads(batch_size=2, timeout=None, on_batch=hook, isolate=True)
    assert threads.outcomes(threads.submits(f, [1, 2])) == [-1, -2]
    assert got == [-10, -11, -12, -13]
    threads.until_idle(f)
    threads.consistent(f)


def test_a_hook_may_submit_to_the_coroutine_function_itself(coroutines: Coroutines) -> None:
    futures: list[Any] = []

    def hook(report: BatchReport) -> None:
        if len(futures) < 3:
            futures.append(f.submit(10 + len(futures)))

    f = coroutines(batch_size=2, timeout=0.0, on_batch=hook)
    assert coroutines.outcomes(coroutines.submits(f, [1, 2])) == [-1, -2]
    coroutines.turn()
    assert coroutines.outcomes(futures) == [-10, -11, -12]
    coroutines.consistent(f)


def test_a_report_of_nothing_is_not_made(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(batch_size=2, timeout=None, on_batch=reports.append)
    kit.submit(f, 1).cancel()
    kit.flush(f)
    kit.close(f)
    assert reports == []


def test_a_report_of_a_generator_comes_after_its_last_result(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    reports: list[BatchReport] = []
    f = kit(lambda xs: (-x for x in xs), batch_size=2, timeout=None, on_batch=reports.append)
    assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
    kit.until(lambda: f.stats.in_flight == 0 and len(reports) == 1)
    assert (reports[0].size, reports[0].error) == (2, None)
    assert not caplog.records  # nor is one tried before


# The warning


WARNED = (
    "negate() gets 2 of at most 5 items each time, after they waited out the timeout of 1.0 s: no more callers wait "
    "at once. They would wait less with a smaller batch_size or timeout=0; more of them would fill it"
)


def by_timeout(coroutines: Coroutines, f: Any, *, rounds: int, items: int = 2, pause: float = 0.0) -> None:
    """Let batches wait out their timeouts, one soon after the other, or after a pause."""
    for _ in range(rounds):
        coroutines.loop.moment += pause
        handles = coroutines.submits(f, range(items))
        coroutines.loop.moment += 1.0
        assert coroutines.outcomes(handles) == [-item for item in range(items)]


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    return [(record.name, record.levelno, record.message) for record in caplog.records if record.name != "asyncio"]


def test_too_few_callers_are_told_of_once(coroutines: Coroutines, caplog: pytest.LogCaptureFixture) -> None:
    f = coroutines(batch_size=5, timeout=1.0)
    by_timeout(coroutines, f, rounds=15)
    assert said(caplog) == []
    by_timeout(coroutines, f, rounds=100)
    assert said(caplog) == [("batchify", logging.WARNING, WARNED)]


def test_too_few_callers_are_told_of_though_the_function_calls_itself(
    coroutines: Coroutines, caplog: pytest.LogCaptureFixture
) -> None:
    async def negate(xs: list[Any]) -> list[Any]:
        if "inside" not in xs:
            assert await f("inside") == "inside"
        return [x if x == "inside" else -x for x in xs]

    f = batched_untyped(batch_size=5, timeout=1.0)(negate)
    by_timeout(coroutines, f, rounds=60)
    assert said(caplog) == [("batchify", logging.WARNING, WARNED)]
    assert f.stats.reasons == {"timeout": 60, "nested": 60}


def test_no_warning_where_there_is_no_reason(coroutines: Coroutines, caplog: pytest.LogCaptureFixture) -> None:
    rare = coroutines(batch_size=5, timeout=1.0)
    by_timeout(coroutines, rare, rounds=100, pause=5.0)
    filled = coroutines(batch_size=2, timeout=1.0)
    by_timeout(coroutines, filled, rounds=100)
    at_once = coroutines(batch_size=5, timeout=0.0)
    by_timeout(coroutines, at_once, rounds=100)
    changing = coroutines(batch_size=5, timeout=1.0)
    for number in range(100):
        by_timeout(coroutines, changing, rounds=1, items=1 + number % 3)
    assert said(caplog) == []


def test_too_few_threads_are_told_of_once(
    threads: Threads, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(threads_module, "monotonic", lambda: now[0])
    f = threads(batch_size=5, timeout=1.0)
    for _ in range(60):
        handles = threads.submits(f, [1, 2])
        now[0] += 1.0
        f._self_batcher._wakes_at = -math.inf  # as when its timer wakes it
        with threads_module._lock:
            f._self_batcher._wake_locked()
        assert threads.outcomes(handles) == [-1, -2]
        threads.until_idle(f)
    assert said(caplog) == [("batchify", logging.WARNING, WARNED)]
    assert f.stats.reasons == {"timeout": 60}


# All together


Item = tuple[int, int, int, bool]  # a number, its group, its weight, whether it is bad


class Together(RuleBasedStateMachine):
    """Any options together, checked by plain rules: over what calls of the function were seen, and what came back."""

    kind: type[Kit]

    @initialize(
        batch_size=st.integers(1, 4),
        timeout=st.sampled_from([0.0, None]),
        group_by=st.booleans(),
        max_weight=st.none() | st.integers(1, 6),
        dedupe=st.booleans(),
        isolate=st.booleans(),
        concurrency=st.integers(1, 3),
        max_pending=st.none() | st.integers(1, 5),
        on_full=st.sampled_from(["wait", "raise"]),
        hook=st.booleans(),
        stream=st.booleans(),
    )
    def begin(
        self,
        batch_size: int,
        timeout: float | None,
        group_by: bool,
        max_weight: int | None,
        dedupe: bool,
        isolate: bool,
        concurrency: int,
        max_pending: int | None,
        on_full: str,
        hook: bool,
        stream: bool,
    ) -> None:
        self.kit = self.kind()
        self.reports: list[BatchReport] = []
        options: dict[str, Any] = {"batch_size": batch_size, "timeout": timeout, "dedupe": dedupe, "isolate": isolate}
        options |= {"concurrency": concurrency, "max_pending": max_pending}
        if max_weight is not None:
            options |= {"weight": lambda item, _: item[2], "max_weight": max_weight}
        if group_by:
            options["group_by"] = lambda item, _: item[1]
        if max_pending is not None:
            options["on_full"] = on_full
        if hook:
            options["on_batch"] = self.reports.append
        self.options = options
        self.largest = batch_size
        self.handles: list[tuple[Item, int, str, Any]] = []  # item, order of arrival, constant, handle
        self.left: set[int] = set()
        self.number = 0

        def function(items: list[Item], orders: list[int], *, constant: str = "") -> Any:
            results = [(item[0], order, constant) for item, order in zip(items, orders, strict=True)]
            bad = [item[0] for item in items if item[3]]
            if bad:
                raise ValueError(bad)
            return iter(results) if stream else results

        self.f = self.kit(function, gated=True, **options)

    # For equal items: the order is part of the item, unless it is to be one of a few.
    items = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 7), st.sampled_from([False] * 7 + [True]))

    @rule(item=items, constant=st.sampled_from(["", "", "x"]), how=st.sampled_from(["submit", "start"]))
    def pass_one(self, item: Item, constant: str, how: str) -> None:
        self.number += 1
        order = item[0] if self.options["dedupe"] else self.number
        call = self.kit.submit if how == "submit" else self.kit.start
        if call == self.kit.start and self.options.get("on_full") == "wait" and len(self.handles) > 60:
            return
        try:
            handle = call(self.f, item, order, constant=constant)
        except BufferFullError:
            assert self.options["max_pending"] is not None
            handle = Future()  # what is drawn later must not depend on the threads
            handle.cancel()
            self.left.add(id(handle))
        self.handles.append((item, order, constant, handle))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles))[3]
        if handle.cancel():
            self.left.add(id(handle))

    @rule(batches=st.integers(1, 3))
    def go_on(self, batches: int) -> None:
        self.kit.go_on(batches)

    @rule()
    def flush(self) -> None:
        self.kit.flush(self.f)

    @rule(batch_size=st.integers(1, 5), timeout=st.sampled_from([0.0, None]))
    def set_options(self, batch_size: int, timeout: float | None) -> None:
        self.largest = max(batch_size, self.largest)
        self.f.batch_size, self.f.timeout = batch_size, timeout

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "f"):
            return
        stats = self.f.stats
        assert stats.pending <= (self.options["max_pending"] or math.inf)
        assert stats.in_flight <= self.options["concurrency"]
        assert self.kit.most <= self.options["concurrency"]
        assert stats.accepted == stats.pending + stats.running + stats.answered + stats.failed + stats.cancelled

    def teardown(self) -> None:
        if not hasattr(self, "f"):
            return
        kit, f = self.kit, self.f
        try:
            kit.go_on(500)
            if f.stats.blocked:  # close would refuse them
                f.timeout = 0.0
                kit.until(lambda: f.stats.blocked == 0)
            kit.close(f)
            self.check()
        finally:
            kit.end()

    def check(self) -> None:
        kit, f = self.kit, self.f
        for item, order, constant, handle in self.handles:
            outcome = kit.outcome(handle)
            if id(handle) in self.left:
                assert handle.cancelled()
            elif item[3]:
                assert type(outcome) in (ValueError, BufferFullError)
                if self.options["isolate"] and type(outcome) is ValueError:
                    assert outcome.args == ([item[0]],)
            elif isinstance(outcome, BaseException):
                assert type(outcome) is BufferFullError or not self.options["isolate"]
            else:
                assert outcome == (item[0], order, constant)
        kit.consistent(f)
        assert len(kit.calls) == f.stats.batches
        if self.reports or "on_batch" in self.options:
            assert len(self.reports) == f.stats.batches
            assert Counter(report.size for report in self.reports) == f.stats.sizes
        most = self.options.get("max_weight", math.inf)
        seen: dict[Any, list[int]] = {}
        for (items, orders), constants in kit.calls:
            assert 1 <= len(items) <= self.largest
            assert len(items) == 1 or sum(item[2] for item in items) <= most
            groups = {item[1] for item in items} if "group_by" in self.options else {0}
            assert len(groups) == 1
            assert set(constants) == {"constant"}
            if self.options["dedupe"]:
                assert len(set(zip(items, orders, strict=True))) == len(items)
            else:
                assert orders == sorted(orders)
                if not self.options["isolate"]:
                    seen.setdefault((constants["constant"], *groups), []).extend(orders)
        if self.options["concurrency"] == 1 or kit.kind == "coroutines":
            for orders in seen.values():
                assert orders == sorted(orders)


class OverThreads(Together):
    kind = Threads


class OverCoroutines(Together):
    kind = Coroutines

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        if not hasattr(self, "f"):
            return
        self.kit.turn()  # type: ignore[attr-defined]
        stats = self.f.stats
        if self.f.timeout == 0.0 and stats.in_flight < self.options["concurrency"]:
            assert stats.pending == stats.blocked == 0


TestTogetherOverThreads = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11")(OverThreads.TestCase)
TestTogetherOverCoroutines = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11")(OverCoroutines.TestCase)
OverThreads.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
OverCoroutines.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# What a reader tried


def test_groups_that_come_and_go_leave_nothing_behind_while_others_come(kit: Kit) -> None:
    f = kit(echo, batch_size=1, group_by=lambda x: x)
    for number in range(200):
        assert kit.outcome(kit.submit(f, number)) == number
    kit.until_idle(f)
    buffer = the_buffer(f)
    kit.until(lambda: len(buffer._full) <= 1)
    gc.collect()
    kit.until(lambda: len(buffer._groups) <= 1)


def test_a_key_that_takes_long_to_hash_holds_up_nobody(threads: Threads) -> None:
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


def test_close_runs_what_waits_in_as_many_threads_as_may_be(threads: Threads) -> None:
    together = threading.Barrier(3)

    def meet(xs: list[int]) -> list[int]:
        together.wait()
        return xs

    f = threads(meet, batch_size=4, timeout=None, concurrency=3, group_by=lambda x: x)
    futures = [f.submit(number) for number in range(3)]
    f.close()
    assert [future.result() for future in futures] == [0, 1, 2]


def test_the_halves_of_a_call_from_inside_do_not_have_the_error_of_the_whole_as_their_context(threads: Threads) -> None:
    reports: list[tuple[str, int]] = []

    def function(xs: list[Any]) -> list[Any]:
        if xs[0] == "outer":
            return [[outcome(future) for future in [f.submit(x) for x in (1, 2)]] + list(f.map([3]))]
        if 2 in xs:
            raise ValueError("two")
        return xs

    def outcome(future: "Future[Any]") -> Any:
        return future.exception() or future.result()

    f = batched(batch_size=2, isolate=True, on_batch=lambda report: reports.append((report.reason, report.size)))(
        function
    )
    with f:
        _, error, _ = f("outer")
    assert type(error) is ValueError
    assert error.__context__ is None or error.__context__ is error.__cause__
    assert error.__cause__ is not None
    assert error.__cause__.__context__ is None


def test_where_nothing_goes_wrong_nothing_is_logged(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    f = kit(batch_size=3, on_batch=lambda report: None)
    handles = [kit.start(f, 1), *kit.submits(f, range(2, 5))]
    assert list(kit.map(f, range(5, 9))) == [-5, -6, -7, -8]
    assert kit.outcomes(handles) == [-1, -2, -3, -4]
    if kit.kind == "threads":
        assert in_threads(f, range(8)) == [-x for x in range(8)]
        assert asyncio.run(f.aio(9)) == -9
    kit.close(f)
    assert [record for record in caplog.records if record.name == "batchify"] == []


def test_the_whole_of_a_map_from_inside_is_reported_before_its_halves(threads: Threads) -> None:
    reports: list[tuple[str, int]] = []

    def function(xs: list[Any]) -> list[Any]:
        if xs == ["outer"]:
            return [list(f.map(range(4)))]
        if len(xs) > 1:
            raise ValueError
        return xs

    f = batched(batch_size=4, isolate=True, on_batch=lambda report: reports.append((report.reason, report.size)))(
        function
    )
    with f:
        assert f("outer") == [0, 1, 2, 3]
    assert reports[:2] == [("nested", 4), ("isolate", 2)]
    assert [size for _, size in reports] == [4, 2, 1, 1, 2, 1, 1, 1]


class Untyped:
    def run(self, xs: list[int]) -> list[int]:
        return xs


def test_options_of_the_method_of_a_class_cannot_be_set(kit: Kit) -> None:
    class Model:
        run = batched(batch_size=2)(Untyped.run)

    for name in ("batch_size", "timeout"):
        with pytest.raises(
            AttributeError, match=rf"^Untyped.run\(\) has a buffer for each instance, so {name} must be set"
        ):
            setattr(Model.run, name, 3)
    one, other = Model(), Model()
    one.run.batch_size = 3
    assert (one.run.batch_size, other.run.batch_size) == (3, 2)


def test_keywords_may_be_called_as_anything(kit: Kit) -> None:
    class Model:
        def run(self, xs: list[int], *, items: int, function: int = 0) -> list[int]:
            return [x + items + function for x in xs]

    model = Model()
    f = kit(model.run, batch_size=1)
    assert kit.outcome(kit.submit(f, 1, items=2, function=3)) == 6
    columns = kit(lambda xs, ys, *, items=1: [x + y + items for x, y in zip(xs, ys, strict=True)], batch_size=1)
    assert kit.outcome(kit.submit(columns, 1, 2, items=3)) == 6


@pytest.mark.parametrize("option", ["concurrency", "max_pending", "weight", "isolate"])
def test_what_cannot_be_changed_is_not_set_in_silence(kit: Kit, option: str) -> None:
    f = kit(echo, batch_size=2)
    with pytest.raises(AttributeError, match=rf"^echo\(\): {option} is fixed when the function is decorated$"):
        setattr(f, option, 3)


def test_where_no_thread_can_be_started_it_is_said_once(
    threads: Threads, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = threads(echo, gated=True, batch_size=1, concurrency=4)
    first = threads.busy(f, 0)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    others = [f.submit(number) for number in (1, 2, 3)]
    monkeypatch.undo()
    threads.go_on(10)
    assert threads.outcomes([first, *others]) == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == ["echo() runs fewer batches at once than it might"]


def test_an_error_that_is_kept_keeps_no_closed_function(threads: Threads) -> None:
    def raises_it(xs: list[int]) -> list[int]:
        raise ValueError

    f: Any = batched(batch_size=1)(raises_it)
    error = f.submit(1).exception()
    f.close()
    gone = weakref.ref(f._self_batcher)
    del f
    gc.collect()
    assert gone() is None
    assert type(error) is ValueError
