"""What does the user touch?

`batched` and what it makes of a function or a method. The only file that knows wrapt, and how Python binds methods.
"""

import copy
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Hashable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import reduce, update_wrapper
from inspect import Signature
from types import CodeType, FunctionType, GenericAlias, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Self, TypeVar, overload

from ._options import MISSING, Options, Takes, given
from ._signature import (
    annotations_of_one_item,
    as_coroutine_code,
    is_coroutine_function,
    is_method,
    name_of,
    signature_of_one_item,
    takes_of,
)
from ._stats import BatchReport, Stats
from ._threads import ThreadEngine
from ._typing import Decorator, P, R, T

if TYPE_CHECKING:
    import asyncio

    from ._asyncio import LoopEngines

    # Not wrapt's class: it answers to any attribute, so a checker would let `f.sumbit` pass.
    _Wrapper = object
else:
    from wrapt import FunctionWrapper as _Wrapper

S_co = TypeVar("S_co", covariant=True)
F = TypeVar("F", bound="BatchedFunction[Any, Any, ...] | BatchedCoroutineFunction[Any, Any, ...]")


class _Decorated(_Wrapper):
    """What `batched` makes: it looks like the function, but takes one item where that takes a list."""

    __qualname__: str
    __wrapped__: Callable[..., Any]
    _self_options: Options

    def __init__(self, function: Callable[..., Any]) -> None:
        if not TYPE_CHECKING:
            super().__init__(function, _not_called)
        # Names that begin so stay here; wrapt passes all others on to the function.
        self._self_list_function = _findable(function, function, "_self_list_function")

    if not TYPE_CHECKING:
        # Finds what wrapt's would (but for a `__doc__` that the function gets later), in a third of the time: that one
        # Python calls as any method, this one directly.
        __getattribute__ = object.__getattribute__

        @property
        def __class__(self) -> type:
            # Not that of the function: cloudpickle would take this for it, and leave the decorator behind.
            return type(self)

        def __str__(self) -> str:
            return repr(self)

        def __setattr__(self, name: str, value: object) -> None:
            # wrapt would set it on the function, where it has no effect.
            if name in Options.__slots__ and name not in ("batch_size", "timeout"):
                raise AttributeError(f"{name_of(self.__wrapped__)}(): {name} is fixed when the function is decorated")
            super().__setattr__(name, value)

    # What inspect asks a function for; a callable object has none of it.

    @property
    def __name__(self) -> str:
        name: str = getattr(self.__wrapped__, "__name__", type(self.__wrapped__).__name__)
        return name

    __defaults__ = None
    __kwdefaults__ = None
    _self_takes_instance = False

    @property
    def __signature__(self) -> Signature:
        return signature_of_one_item(self.__wrapped__, method=self._self_takes_instance)

    # A function is copied as itself. Pickled are the function and its options; the buffer and the callers stay here.

    _self_of_class = False

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if type(self.__wrapped__) is FunctionType:
            return self
        # It is bound, perhaps to what is copied. The copy must not answer as the original.
        restore, arguments = self.__reduce_ex__(4)
        copied: Self = restore(*copy.deepcopy(arguments, memo))
        return copied

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        place = getattr(self, "__module__", None), getattr(self, "__qualname__", "")
        return _restored, (self._self_list_function, *place, self._self_options, self._self_of_class)


class _Batched(Generic[T, R, P], _Decorated):
    """What both kinds of decorated functions have in common."""

    if not TYPE_CHECKING:
        # Before Python 3.13 a ParamSpec has no default, so Generic's own would insist on it.
        __class_getitem__ = classmethod(GenericAlias)

    def __init__(
        self,
        function: Callable[..., Any],
        engine: "ThreadEngine | LoopEngines",
        owner: object = None,
        attribute: str | None = None,
    ) -> None:
        super().__init__(function)
        self._self_engine = engine
        self._self_options = engine.options
        # Of a method: whose it is, which all calls that wait keep alive, and under what name it is found there.
        self._self_bound_to = owner
        self._self_attribute = attribute
        self._self_aio: Any = engine.aio and MethodType(engine.aio, (engine, owner))

    @property
    def aio(self) -> Callable[Concatenate[T, P], Coroutine[Any, Any, R]]:
        """A coroutine function: awaits an item's result from any event loop, and does not block it.

        A `def` function still runs in its flush thread, and items from event loops and from threads share batches. Of
        an `async def` function it is the same as a call. Cancelling takes the item out of the buffer; if it is in a
        batch already, only its answer is dropped. Raises what a call would raise.
        """
        if self._self_aio is None:
            engine = self._self_engine
            if engine.aio is None:
                from ._asyncio import aio_of  # asyncio is imported when it is needed

                engine.aio = aio_of(f"{engine.name}.aio", engine.takes)
            self._self_aio = MethodType(engine.aio, (engine, self._self_bound_to))
        aio: Callable[Concatenate[T, P], Coroutine[Any, Any, R]] = self._self_aio
        return aio

    def flush(self) -> None:
        """Make what waits due now. Does not wait for the answers. Any thread may call."""
        self._self_engine.flush()

    async def aclose(self, timeout: float | None = None, *, cancel_pending: bool = False) -> None:
        """Refuse what comes, from anywhere, and wait until what was accepted is answered.

        Of an `async def` function, what other event loops accepted is answered there, and not waited for. May be called
        often, and from any event loop. From inside the function it does not wait, as it would wait for itself; while it
        closes, calls from inside a function that wait for their answer are accepted.

        `async with f:` closes at its end. It opens a function that was closed, for the block; of several blocks that
        are open at once the last one to end closes.

        Args:
            timeout: Longest time in seconds that this waits; None means without end.
            cancel_pending: Whether what is in no batch yet gets a `ClosedError` in place of an answer. A flush thread
                that is running the function gives it when that batch has ended.

        Raises:
            TimeoutError: Not all was answered within `timeout` seconds. It goes on being closed, and nothing is lost.
        """
        self._self_engine.begin_to_close(cancel_pending=cancel_pending)
        await self.adrain(timeout)

    async def adrain(self, timeout: float | None = None) -> None:
        """Make due what waits, and wait until all that was accepted so far is answered. It stays open.

        Of an `async def` function, that is what the running event loop accepted. From inside the function it does not
        wait, as it would wait for itself.

        Args:
            timeout: Longest time in seconds that this waits; None means without end.

        Raises:
            TimeoutError: Not all was answered within `timeout` seconds. Nothing is lost.
        """
        from ._asyncio import when_answered

        await when_answered(self._self_engine, timeout)

    async def __aenter__(self) -> Self:
        self._self_engine.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._self_engine.ends_block():
            await self.adrain()

    @property
    def stats(self) -> Stats:
        """What the function has done so far."""
        return self._self_engine.stats

    @property
    def batch_size(self) -> int:
        """Most items in one call of the function. May be set at any time, also for what waits."""
        return self._self_options.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._self_engine.batch_size = value

    @property
    def timeout(self) -> float | None:
        """Seconds that the oldest item waits for others. May be set at any time, also for what waits."""
        return self._self_options.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._self_engine.timeout = value

    def __repr__(self) -> str:
        return f"<batched {self._self_engine.name}(), batch_size={self.batch_size}, timeout={self.timeout}>"

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        # As a static method: this has no place for an instance. BatchedMethod has.
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._self_attribute is not None:
            return getattr, (self._self_bound_to, self._self_attribute)
        return super().__reduce_ex__(protocol)

    def _self_columns(
        self, items: Any, more: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, Mapping[str, Any], bool]:
        """Return the items of a map, its constants, and whether all that it reads has a length."""
        takes: Takes = self._self_engine.takes
        _, constants = takes.bind(items, *more, **named)
        sized = all(hasattr(each, "__len__") for each in (items, *more))
        if takes.columns > 1:
            bind = takes.bind
            items = (bind(*each, **named)[0] for each in zip(items, *more))  # noqa: B905 - as map() does
        return items, constants, sized


class BatchedFunction(_Batched[T, R, P]):
    """A function of one item, answered by calls of a function of a list. Made by `batched`. Any thread may call it.

    What it is called with: `T` is the item, or of several columns the first, `P` what follows.
    """

    _self_engine: ThreadEngine

    def __call__(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Block until the item is answered.

        Args:
            item: One entry of the list that the function gets.
            *args: One entry of each further list that it gets.
            **kwargs: Keyword-only arguments of the function. Only calls with the same ones share a batch.

        Returns:
            The result of this item.

        Raises:
            Exception: Whatever the function raised, as a copy of this caller's own.
            BatchError: The function raised what is no `Exception`, or gave this item no result.
            TypeError: The function returned what cannot be results.
            BufferFullError: `max_pending` items wait.
            ClosedError: `close()` or `aclose()` was called before, or the interpreter exits.
        """
        engine = self._self_engine
        if engine.takes.plain and item is not MISSING and not args and not kwargs:
            return engine.call(item)  # type: ignore[no-any-return]
        return engine.call(*engine.takes.bind(*given(item, args), **kwargs))  # type: ignore[no-any-return]

    def submit(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Pass an item without blocking.

        Args:
            item: One entry of the list that the function gets.
            *args: As in a call.
            **kwargs: As in a call.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; once its batch runs it cannot
            be cancelled.

        Raises:
            BufferFullError: `max_pending` items wait.
            ClosedError: `close()` or `aclose()` was called before, or the interpreter exits.
        """
        engine = self._self_engine
        if engine.takes.plain and item is not MISSING and not args and not kwargs:
            return engine.submit(item, self._self_bound_to)
        bound, constants = engine.takes.bind(*given(item, args), **kwargs)
        return engine.submit(bound, self._self_bound_to, constants)

    def map(self, items: Iterable[T], /, *more: Iterable[Any], **kwargs: Any) -> Generator[R, None, None]:
        """Pass many items, from one thread. Other callers' items may join the batches.

        What it reads does not count against `max_pending`.

        Args:
            items: Read at most two batches ahead of the results; one item at a time if it has no length.
            *more: For a function of several columns, the entries of the others; ends with the shortest, as `map` does.
            **kwargs: As in a call.

        Returns:
            A lazy iterator over the results, in order. The first error is raised where its result would stand and ends
            it; what was read by then and is in no batch yet is taken out. Dropping or closing it does the same. When
            the items end, what waits is made due, other callers' items too; with `group_by` and no timeout also
            when its next result is that of an item whose group nothing will fill.

        Raises:
            TypeError: `items` is not iterable.
            ClosedError: `close()` or `aclose()` was called before, or the interpreter exits.
        """
        found, constants, sized = self._self_columns(items, more, kwargs)
        return self._self_engine.map(found, self._self_bound_to, constants, chunked=sized)

    def close(self, timeout: float | None = None, *, cancel_pending: bool = False) -> None:
        """As `aclose`, for any thread: blocks until what was accepted is answered, and the threads have ended.

        `with f:` is to this what `async with f:` is to `aclose`.

        Args:
            timeout: Longest time in seconds that this waits; None means without end.
            cancel_pending: Whether what is in no batch yet gets a `ClosedError` in place of an answer; see `aclose`.

        Raises:
            TimeoutError: Not all was answered within `timeout` seconds. It goes on being closed, and nothing is lost.
        """
        self._self_engine.close(timeout, cancel_pending=cancel_pending)

    def drain(self, timeout: float | None = None) -> None:
        """As `adrain`, for any thread: blocks until all that was accepted so far is answered.

        Args:
            timeout: Longest time in seconds that this waits; None means without end.

        Raises:
            TimeoutError: Not all was answered within `timeout` seconds. Nothing is lost.
        """
        self._self_engine.drain(timeout)

    def __enter__(self) -> Self:
        self._self_engine.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._self_engine.close_at_end_of_block()


class BatchedCoroutineFunction(_Batched[T, R, P]):
    """A coroutine function of one item, answered by calls of one of a list. Made by `batched`.

    Coroutines in any number of event loops may call it. Items from one loop share batches, which run there. What it is
    called with, and what errors there are, is told at `BatchedFunction`.
    """

    _self_engine: "LoopEngines"

    def __call__(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Await the item's result. Cancelling takes the item out of the buffer; see `submit`."""
        if item is not MISSING and not args and not kwargs:
            return self._self_aio(item)  # type: ignore[no-any-return]
        return self._self_aio(*given(item, args), **kwargs)  # type: ignore[no-any-return]

    def submit(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[R]":
        """Pass an item to the running event loop. Under `asyncio.gather` several times cheaper than a task per item.

        Args:
            item: One entry of the list that the function gets.
            *args: As in a call.
            **kwargs: As in a call.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; if it is in a batch already,
            only its answer is dropped, and when all callers of a batch have left its task is cancelled. An error that
            nobody asks it for is not logged.

        Raises:
            RuntimeError: No event loop runs here.
            BufferFullError: `max_pending` items wait.
            ClosedError: `aclose()` was called before.
        """
        engine = self._self_engine
        if engine.takes.plain and item is not MISSING and not args and not kwargs:
            return engine.submit(item, self._self_bound_to).future
        bound, constants = engine.takes.bind(*given(item, args), **kwargs)
        return engine.submit(bound, self._self_bound_to, constants).future

    def map(
        self, items: Iterable[T] | AsyncIterable[T], /, *more: Iterable[Any], **kwargs: Any
    ) -> AsyncGenerator[R, None]:
        """Pass many items, from one task, as `BatchedFunction.map` does from one thread.

        Args:
            items: Read at most two batches ahead of the results. An asynchronous iterable is read by a task of its own,
                so that no result waits for the next item to come.
            *more: For a function of several columns, the entries of the others. All of these must be synchronous then.
            **kwargs: As in a call.

        Returns:
            A lazy asynchronous iterator over the results, in order. When the items end, what waits in this loop is made
            due, other callers' items too.

        Raises:
            TypeError: `items` is not iterable.
            ClosedError: `aclose()` was called before.
        """
        found, constants, _ = self._self_columns(items, more, kwargs)
        return self._self_engine.map(found, self._self_bound_to, constants)

    if not TYPE_CHECKING:

        def close(self, *_: object, **__: object) -> None:
            raise TypeError(
                f"{self._self_engine.name}() is `async def`: use `async with`, or `await` aclose() or adrain()"
            )

        drain = __enter__ = close

    @property
    def __code__(self) -> CodeType:
        return as_coroutine_code(getattr(self.__wrapped__, "__code__", self._self_engine.aio.__code__))


class BatchedMethod(Generic[S_co, F], _Decorated):
    """A method of one item, answered by calls of a method of a list. Made by `batched` in a class.

    `instance.method` is a `BatchedFunction` or `BatchedCoroutineFunction` with a buffer of this instance's own, which
    goes with the instance; `Class.method` is this object. Instances need not be hashable, but weakly referenceable.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        kind: type[F],
        begin: "Callable[[Callable[..., Any], str, Options, Takes], ThreadEngine | LoopEngines]",
        options: Options,
        takes: Takes,
        *,
        of_class: bool,
    ) -> None:
        super().__init__(function)
        self._self_kind = kind
        self._self_begin = begin
        self._self_options = options
        self._self_takes = takes
        self._self_of_class = of_class
        self._self_attribute: str = function.__name__
        # By id(), since instances may be equal or unhashable. An entry goes with its instance, before that id can be
        # given to another one; should it not, for Ctrl-C in forget(), the weak reference says whose it was.
        self._self_engines: dict[int, tuple[weakref.ref[object], Any]] = {}

    _self_takes_instance = True

    def __set_name__(self, owner: type, name: str) -> None:
        self._self_attribute = name

    @overload
    def __get__(self: "BatchedMethod[type[Any], F]", instance: object, owner: type) -> F: ...
    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> F: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self._self_of_class:
            instance = type(instance) if owner is None else owner
        elif instance is None:
            return self
        entry = self._self_engines.get(id(instance))
        engine = entry[1] if entry is not None and entry[0]() is instance else self._begin(instance)
        function = self.__wrapped__.__get__(instance, type(instance))
        return self._self_kind(function, engine, instance, self._self_attribute)

    def _begin(self, instance: object) -> Any:
        engines, key = self._self_engines, id(instance)
        kind = instance if isinstance(instance, type) else type(instance)
        name = f"{kind.__name__}.{self._self_attribute}"

        def forget(_: object) -> None:
            _, engine = engines.pop(key, (None, None))
            if engine is not None:
                engine.drop()

        try:
            reference = weakref.ref(instance, forget)
        except TypeError:
            raise TypeError(
                f"{name}() needs an instance that can be weakly referenced, since its buffer goes with it: "
                f"add '__weakref__' to the __slots__ of {kind.__name__}"
            ) from None
        function = _bound_weakly(self.__wrapped__, reference, self._self_takes)
        entry = (reference, self._self_begin(function, name, replace(self._self_options), self._self_takes))
        found = engines.setdefault(key, entry)  # another thread may come first
        if found[0]() is not instance:
            engines[key] = found = entry
        return found[1]

    @overload
    def __call__(
        self: "BatchedMethod[Any, BatchedFunction[T, R, P]]",
        instance: Any,
        item: T,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    def __call__(
        self: "BatchedMethod[Any, BatchedCoroutineFunction[T, R, P]]",
        instance: Any,
        item: T,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, R]: ...
    def __call__(self, instance: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call it as a method of the instance, as Python's own `Class.method(instance, item)` does."""
        return self.__get__(instance, instance)(*args, **kwargs)

    def __repr__(self) -> str:
        options = self._self_options
        return (
            f"<batched {name_of(self.__wrapped__)}(), batch_size={options.batch_size}, timeout={options.timeout}, "
            f"a buffer per instance>"
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if hasattr(BatchedFunction, name):  # both kinds have the same names
                raise self._self_not_mine(name, "asked")
            return super().__getattr__(name)

        def __setattr__(self, name: str, value: object) -> None:
            if name in ("batch_size", "timeout"):
                raise self._self_not_mine(name, "set")
            super().__setattr__(name, value)

        def _self_not_mine(self, name: str, done: str) -> AttributeError:
            return AttributeError(
                f"{name_of(self.__wrapped__)}() has a buffer for each instance, so {name} must be {done} of the "
                f"method of an instance (if it is a class method, put @batched above @classmethod)"
            )


def _bound_weakly(function: Callable[..., Any], reference: "weakref.ref[object]", takes: Takes) -> Callable[..., Any]:
    """Bind a method without keeping its instance alive. Whoever waits for an answer does that."""

    def run(items: list[Any], /, **constants: Any) -> Any:
        instance = reference()
        if instance is None:
            raise ReferenceError("the instance that was to answer is gone")
        return _of_items(function.__get__(instance, type(instance)), takes)(items, **constants)

    return run


def _of_items(function: Callable[..., Any], takes: Takes) -> Callable[..., Any]:
    """Return a function of one list, of items, that passes each column as a list of its own."""
    if takes.columns == 1:
        return function

    def run(items: list[Any], /, **constants: Any) -> Any:
        return function(*map(list, zip(*items, strict=True)), **constants)

    return run


def _findable(function: Any, within: Callable[..., Any], attribute: str) -> Any:
    """Return the list function, or one of its options, as pickle shall see it: under a name at which it is found.

    That is an attribute of what we make of the list function, which itself is found where the list function was.
    """
    if type(function) is not FunctionType or type(within) is not FunctionType:
        return function
    found = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    update_wrapper(found, function)
    del found.__wrapped__  # type: ignore[attr-defined]
    found.__kwdefaults__ = function.__kwdefaults__
    found.__module__, found.__qualname__ = within.__module__, f"{within.__qualname__}.{attribute}"
    return found


def _restored(
    function: Callable[..., Any], module: str | None, qualname: str, options: Options, of_class: bool
) -> _Decorated:
    """Return what was pickled: the one of this process where it stands at its place, else one made anew.

    A `function` that comes from `_findable()` is pickled by pickle as a name, and by cloudpickle as a name or as a
    whole, by its own rules.
    """
    try:
        found = reduce(getattr, qualname.split("."), sys.modules[module or ""])
    except (AttributeError, KeyError):
        found = None
    if isinstance(found, _Decorated) and getattr(found, "_self_list_function", None) is function:
        return found
    if type(function) is FunctionType:
        function.__qualname__ = qualname
    made: _Decorated = _decorate(classmethod(function) if of_class else function, replace(options))
    return made


def batched(
    *,
    batch_size: int,
    timeout: float | None = 0.0,
    weight: Callable[..., float] | None = None,
    max_weight: float | None = None,
    group_by: Callable[..., Hashable] | None = None,
    dedupe: bool = False,
    isolate: bool = False,
    concurrency: int = 1,
    max_pending: int | None = None,
    on_batch: Callable[[BatchReport], object] | None = None,
) -> Decorator:
    """Turn a function of a list into a function of one item.

    Calls made close together, from any number of threads, are answered by one call of the function. It runs in a
    thread of its own, in an empty context (`contextvars`), and, but for `concurrency`, never twice at the same time.
    The function gets a list of items that it may keep or change, and returns one result per item, in the same order: as
    a list or anything else that has a length and iterates in order; as a mapping from item to result; as an iterator,
    where each caller goes on as soon as its result is yielded; or as a thread-safe future of one of these, from an
    executor. An `Exception` among the results is raised at its own caller. If the function raises, each caller of that
    batch gets a copy of the error.

    Further parameters by position are further lists, with one entry per item each: `def f(xs, ys)` is called `f(x, y)`,
    the item is the tuple of both, and a default is that of one item; type checkers check up to three. Keyword-only
    parameters are the same for a whole batch: only calls with equal ones, which must be hashable, share it.

    An `async def` function, which may be an asynchronous generator, becomes a coroutine function of one item. It runs
    on the event loop of its callers, each batch in a task with an empty context, without threads; calls made on one
    loop share batches, and all limits are those of one loop. When all callers of a batch have left, its task is
    cancelled.

    The function may use batched functions, also itself. An item that it passes by `submit` waits its turn like any
    other. Who waits there for an answer (a call, `result()`, `map`, `await`) that would come only when this batch has
    ended has that item run at once, alone, where it waits.

    A batch is taken only when the function is free to run; until then items go on joining. So with a timeout of 0
    nobody waits for company, and batches form by themselves while the function is busy. Source: a batch is due by the
    rule of TensorFlow's `shared_batch_scheduler.h`; that a function of a list is called with one item is from
    dataloader.

    Args:
        batch_size: Most items in one call of the function, at least 1.
        timeout: Longest time in seconds that the oldest item waits for others; 0 means no wait, None that only a full
            batch, `flush()`, `drain()` or `close()` ends it. Bounds neither the function's own run time nor a caller's
            total wait.
        weight: A function that is called with the item, or one entry of each column, and returns what it weighs
            (tokens, bytes): a number of at least 0.
        max_weight: Most that the items of a batch may weigh together. An item that does not fit opens the next batch,
            and one that is heavier than this runs alone.
        group_by: A function that is called like `weight`, and returns something hashable. Only items for which that is
            equal share a batch. Of the batches that are due, the one whose oldest item has waited longest goes first.
        dedupe: Whether items that wait at once and are equal, in type and value, are one: given to the function once,
            for all their callers, who get the very same object, and count once for `batch_size`. Items must be
            hashable. Nothing is remembered from batch to batch.
        isolate: Whether a batch for which the function raises an `Exception` is halved and the halves are run again, so
            that in the end only the caller of a bad item gets an error: at most 2n - 1 calls for n items. What the
            function does must be safe to do twice.
        concurrency: Most batches in flight at once. With more than 1, a `def` function that blocks runs in so many
            threads, if so many are needed, and one that returns futures still in one.
        max_pending: Most items that wait in the buffer; None means no limit. When so many wait they are due, and
            whoever passes another one gets a `BufferFullError`. The items of `map()` do not count, and are never
            refused: it reads at most two batches ahead, so `stats.pending` may be above this by that.
        on_batch: A function that is called with a `BatchReport` when a batch has ended, before its last callers go on,
            by the thread or on the loop that ran it. If it raises, that is logged. A batch that runs in the midst of
            such a call, as when it calls the function itself, is not reported.

    `weight` and `group_by` are called by the caller; what they raise is raised at that call alone.

    Ctrl-C in a caller that blocks takes its item out and touches no other call. Where it strikes code that runs on an
    event loop, `on_batch`, or what an engine calls back on the main thread, the next call works, but calls of that very
    batch may hear nothing; under `asyncio.run`, which turns it into a cancellation, every call ends.

    A method, that is a function written in a class, has a buffer for each instance, a class method one for each class;
    these go with the instance or class, which no buffer keeps alive, but what waits in it does. A static method is
    a function.

    Returns:
        A decorator from `list[T] -> list[R]` to `T -> R`: see `BatchedFunction`, `BatchedCoroutineFunction` and, for
        methods, `BatchedMethod`.

    Raises:
        TypeError: (On decorating) the function takes no list by position, or `*args` or `**kwargs`; an option is of
            the wrong type, or lacks the one that it needs.
        ValueError: (On decorating) an option is out of its range.
    """
    asked = locals()  # the options, by name

    def decorate(function: Callable[..., Any], /) -> Any:
        return _decorate(function, Options(**asked))

    return decorate


def _decorate(function: Any, options: Options) -> Any:
    of_class, is_static = isinstance(function, classmethod), isinstance(function, staticmethod)
    if of_class or is_static:
        function = function.__func__
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"batched() decorates a function of one list, got {function!r}")
    if issubclass(type(function), _Decorated):
        raise TypeError(f"{function!r} is batched already")
    name = name_of(function)
    method = of_class or (is_method(function) and not is_static)
    takes = takes_of(name, function, method=method)
    options.check(name)
    for option in ("weight", "group_by", "on_batch"):
        value = getattr(options, option)
        if "<" in getattr(value, "__qualname__", ""):  # a lambda, or in another function
            setattr(options, option, _findable(value, function, f"_self_options.{option}"))
    kind: Any = BatchedFunction
    begin: Any = ThreadEngine
    if is_coroutine_function(function):
        from ._asyncio import LoopEngines  # asyncio is imported when it is needed

        kind, begin = BatchedCoroutineFunction, LoopEngines
    if method:
        return BatchedMethod(function, kind, begin, options, takes, of_class=of_class)
    engine = begin(_of_items(function, takes), name, options, takes)
    made = kind(function, engine)
    # Calls, threads, timers and tasks hold the engine, but never what the user holds: so it is known when he drops it.
    weakref.finalize(made, drop, weakref.ref(engine)).atexit = False
    return made


def drop(known: "Callable[[], ThreadEngine | LoopEngines | None]") -> None:
    """Let an engine answer what waits, and end, as nobody can call any more."""
    engine = known()
    if engine is not None:
        engine.drop()


def _not_called(*_: object) -> None:
    """Stand where wrapt wants a wrapper function; `__call__` is overridden."""


for _entry in (
    BatchedFunction.__call__,
    BatchedFunction.submit,
    BatchedCoroutineFunction.__call__,
    BatchedCoroutineFunction.submit,
):
    _entry.__defaults__ = (MISSING,)


def _annotations(self: _Decorated) -> dict[str, Any]:
    return annotations_of_one_item(self.__wrapped__, method=self._self_takes_instance)


for _kind in (BatchedFunction, BatchedCoroutineFunction, BatchedMethod):
    # In each class itself: Python makes an empty one where it is missing, as soon as somebody asks the class.
    setattr(_kind, "__annotations__", property(_annotations))  # noqa: B010 - a type checker forbids it
