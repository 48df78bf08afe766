"""What does the user touch?

`batched` and what it makes of a function or a method. The only file that knows wrapt, and how Python binds methods.
"""

import copy
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Hashable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial, wraps
from inspect import Signature
from operator import attrgetter
from types import CodeType, FunctionType, GenericAlias, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, Self, TypeVar, cast, overload

from . import _signature
from ._options import CHECKS, MISSING, Options, Takes, given
from ._signature import name_of
from ._stats import BatchReport, Observer, Stats
from ._threads import ThreadEngine
from ._typing import Decorator, K, P, R, T, X

if TYPE_CHECKING:
    import asyncio

    from ._asyncio import LoopEngines

    # Not wrapt's class: it answers to any attribute, so a checker would let `f.sumbit` pass.
    _Wrapper = object
else:
    from wrapt import BaseObjectProxy as _Wrapper

_put = _Wrapper.__setattr__  # past our own, since a method is made anew at each access

S_co = TypeVar("S_co", covariant=True)
F_co = TypeVar("F_co", bound=Callable[..., Any], covariant=True)


def _found(method: X) -> X:
    """Let `__call__` be what an object has as `_self_call`, so that no step stands between a caller and the engine.

    Python looks for it in the class alone. What is decorated gives types and documentation, and is not run.
    """
    return cast("X", property(attrgetter("_self_call"), doc=method.__doc__))


if TYPE_CHECKING:
    _replaceable = property
else:

    class _replaceable:  # noqa: N801 - as property
        """Like a property, but a test may put something else in its place, and take that back."""

        def __init__(self, get: Callable[[Any], Any]) -> None:
            self._get, self.__doc__ = get, get.__doc__

        def __get__(self, instance: Any, owner: type) -> Any:
            return self if instance is None else self._get(instance)


class _Decorated(_Wrapper):
    """What `batched` makes: it looks like the function, but takes one item where that takes a list."""

    __qualname__: str
    __wrapped__: Callable[..., Any]
    _self_options: Options
    # What pickle is to see. Names that begin so stay here; wrapt passes all others on to the function.
    _self_list_function: Any
    _self_of_class = False
    # Of a bound method: what it was made of, and whose it is, which all calls that wait keep alive.
    _self_bound_to: tuple[Any, Any] = None, None

    # What inspect asks a function for; a callable object has none of it.
    __defaults__ = None
    __kwdefaults__ = None

    if not TYPE_CHECKING:
        # Finds what wrapt's would (but for a `__doc__` that the function gets later), in a third of the time: that one
        # Python calls as any method, this one directly.
        __getattribute__ = object.__getattribute__
        __str__ = object.__str__
        # Not those of the function: two that batch the same one are two, and none is it. cloudpickle would take this
        # for the function, and leave the decorator behind.
        __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__
        __class__ = property(type)

        def __init_subclass__(cls) -> None:
            super().__init_subclass__()
            # In each class itself: Python makes an empty one where it is missing, as soon as somebody asks the class.
            if sys.version_info < (3, 14):
                cls.__annotations__ = vars(_Decorated)["__annotations__"]

        def __setattr__(self, name: str, value: object) -> None:
            refused = self._self_cannot_set(name)
            if refused:
                raise AttributeError(f"{name_of(self.__wrapped__)}(): {refused}")
            super().__setattr__(name, value)

    def _self_cannot_set(self, name: str) -> str:
        """Return why not; empty if it can. wrapt would set the rest on the function, where it has no effect."""
        if name == "__wrapped__":
            return "the list function (__wrapped__) is fixed; for a test, replace what it uses, or what is decorated"
        if self._self_bound_to[1] is not None and name not in _OPTIONS and not name.startswith("_self_"):
            return f"a method is made anew at each access, so {name} would be lost; replace the method as a whole"
        if not name.startswith(("_self_", "__")) and not hasattr(self, name):
            return f"it has no {name}; what may be set is {' and '.join(CHECKS)}"
        return ""

    def __dir__(self) -> list[str]:
        names = {*dir(type(self)), *dir(self.__wrapped__)}
        return sorted(name for name in names if not name.startswith("_self_"))

    @property
    def __name__(self) -> str:
        return str(getattr(self.__wrapped__, "__name__", type(self.__wrapped__).__name__))

    @property
    def __signature__(self) -> Signature:
        return _signature.signature_of_one_item(self.__wrapped__, method=isinstance(self, BatchedMethod))

    # A function is copied as itself. Pickled are the function and its options; the buffer and the callers stay here.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if type(self.__wrapped__) is FunctionType:
            return self
        # It is bound, perhaps to what is copied. The copy must not answer as the original.
        restore, arguments = self.__reduce_ex__(4)
        return restore(*copy.deepcopy(arguments, memo))  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        method, owner = self._self_bound_to
        if owner is not None:
            return getattr, (owner, method._self_attribute)
        return _restored, (self._self_list_function, self._self_options, self._self_of_class)

    if not TYPE_CHECKING:
        # At the end of the class, where the annotations in it have been collected before Python 3.14.
        __annotations__ = property(lambda self: _signature.annotations_of(self.__signature__))
        __annotate__ = property(lambda self: partial(_signature.annotate, self))


def _refuse(option: str, self: _Decorated, _: object) -> None:
    raise AttributeError(f"{name_of(self.__wrapped__)}(): {option} is fixed when the function is decorated")


_OPTIONS = {each.name for each in fields(Options)}
_FIXED = _OPTIONS - CHECKS.keys()
for _option in _FIXED:
    _read = attrgetter(f"_self_options.{_option}")
    _doc = f"`{_option}`, as given when the function was decorated. It cannot be set."
    setattr(_Decorated, _option, property(_read, partial(_refuse, _option), doc=_doc))


class _Access:
    """What everything has by which a function can be called: when this is gone, nobody can call it any more."""

    __slots__ = ("__weakref__", "engine")

    def __init__(self, engine: "ThreadEngine | LoopEngines") -> None:
        self.engine: Any = engine


class _Common:
    """What functions and processors of any kind have in common."""

    __slots__ = ()

    _self_engine: Any  # a ThreadEngine, or LoopEngines

    def flush(self) -> None:
        """Make waiting items due now. Does not wait for the answers. Any thread may call."""
        self._self_engine.flush()

    @property
    def stats(self) -> Stats:
        """What the function has done so far."""
        return self._self_engine.stats  # type: ignore[no-any-return]


class Blocking(_Common):
    """How threads wait until all is answered."""

    __slots__ = ()

    _self_engine: ThreadEngine

    def close(self, timeout: float | None = None, *, cancel_pending: bool = False) -> None:
        """Refuse new items, and block until accepted ones are answered and the threads have ended.

        Any thread may call, more than once. From inside the function it does not wait, as it would wait for itself.
        Until all is answered, calls from inside a function that wait for their answer are accepted.

        `with f:` closes at its end. It opens a closed function for the block; of several blocks at once, the last one
        to end closes.

        Args:
            timeout: Longest time in seconds that this waits; None means without end.
            cancel_pending: Whether items in no batch yet get a `ClosedError` in place of an answer. While the flush
                thread runs a batch, they get it when that has ended.

        Raises:
            TimeoutError: Not all was answered within `timeout` seconds. It stays closed; the rest is still answered.
        """
        self._self_engine.close(timeout, cancel_pending=cancel_pending)

    def drain(self, timeout: float | None = None) -> None:
        """Make waiting items due, and block until all that were accepted so far are answered. It stays open.

        From inside the function it does not wait, as it would wait for itself.

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
        self._self_engine.close(ends_block=True)


class _Batched(Generic[T, R, P], _Common, _Decorated):
    """What both kinds of decorated functions have in common."""

    if not TYPE_CHECKING:
        # Before Python 3.13 a ParamSpec has no default, so Generic's own would insist on it.
        __class_getitem__ = classmethod(GenericAlias)

    # How an engine is asked by a call (None: by its `aio`) and by `submit`. See Takes.define().
    _self_bodies: tuple[str | None, str]
    _self_submit: Any  # takes the instance first, of a method
    _self_call: Any

    def __init__(self, function: Any, of: Any, entries: Any = None) -> None:
        # Of an _Access; or of a BatchedMethod and its instance, as a MethodType is made of these.
        method = owner = None
        if entries is None:
            method, owner = function, of
            found = method._self_engines.get(id(owner))
            if found is None or found[0]() is not owner:
                found = method._self_begin_for(owner)
            function, (of, entries) = method.__wrapped__.__get__(owner, type(owner)), found[1]
        super().__init__(function)  # type: ignore[call-arg]
        engine = of.engine
        _put(self, "_self_engine", engine)
        _put(self, "_self_bound_to", (method, owner))
        call, submit = entries
        _put(self, "_self_submit", submit)
        if owner is None:  # not of a method: a copy of it would go on passing items to the original
            _put(self, "submit", submit)  # the same in a step less
        elif call is not None:
            call = MethodType(call, owner)
        _put(self, "_self_call", MethodType(engine.aio, (engine, owner)) if call is None else call)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            # So weakref.WeakMethod and signals can bind it again. Nothing else has these, though what it batches may.
            if name in ("__func__", "__self__"):
                if self._self_bound_to[1] is None:
                    raise AttributeError(f"{self!r} is no bound method, and has no {name}")
                return self._self_bound_to[name == "__self__"]
            return super().__getattr__(name)

    def __eq__(self, other: Any) -> bool:
        return self._self_engine is other._self_engine if issubclass(type(other), _Batched) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._self_engine)

    @property
    def _self_options(self) -> Options:  # type: ignore[override]
        return self._self_engine.options  # type: ignore[no-any-return]

    @_replaceable
    def aio(self) -> Callable[Concatenate[T, P], Coroutine[Any, Any, R]]:
        """A coroutine function: awaits an item's result from any event loop, and does not block it.

        A `def` function still runs in its flush thread, and items from event loops and from threads share batches. With
        `async def`, `f.aio(x)` is the same as `f(x)`. Cancelling takes the item out of the buffer; if it is in a batch
        already, only its answer is dropped. Raises what a call would raise, and a `RuntimeError` where no event loop of
        asyncio runs.
        """
        engine = self._self_engine
        if engine.aio is None:
            from ._asyncio import aio_of, submit_to_thread  # asyncio is imported when it is needed

            engine.aio = aio_of(f"{engine.name}.aio", engine.takes, submit_to_thread)
        return MethodType(engine.aio, (engine, self._self_bound_to[1]))

    async def aclose(self, timeout: float | None = None, *, cancel_pending: bool = False) -> None:
        """Refuse new items, from anywhere, and wait until accepted ones are answered.

        With an `async def` function, items of other event loops are answered there, not waited for. Any event loop may
        call, more than once. From inside the function it does not wait, as it would wait for itself. Until all is
        answered, calls from inside a function that wait for their answer are accepted.

        `async with f:` closes at its end. It opens a closed function for the block; of several blocks at once, the last
        one to end closes.

        Args:
            timeout: Longest time in seconds that this waits; None means without end.
            cancel_pending: Whether items in no batch yet get a `ClosedError` in place of an answer. While the flush
                thread runs a batch, they get it when that has ended.

        Raises:
            TimeoutError: Not all was answered within `timeout` seconds. It stays closed; the rest is still answered.
        """
        self._self_engine.begin_to_close(cancel_pending=cancel_pending)
        await self.adrain(timeout)

    async def adrain(self, timeout: float | None = None) -> None:
        """Make waiting items due, and wait until all that were accepted so far are answered. It stays open.

        With an `async def` function, these are the items of the running event loop. From inside the function it does
        not wait, as it would wait for itself.

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
    def batch_size(self) -> int:
        """Most items in one call of the function. May be set at any time, also for waiting items.

        A wrong value raises a TypeError or a ValueError, as it does when decorating.
        """
        return self._self_engine.options.batch_size  # type: ignore[no-any-return]

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._self_engine.change("batch_size", value)

    @property
    def timeout(self) -> float | None:
        """Seconds that the oldest item waits for others. May be set at any time, also for waiting items.

        A wrong value raises a TypeError or a ValueError, as it does when decorating.
        """
        return self._self_engine.options.timeout  # type: ignore[no-any-return]

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._self_engine.change("timeout", value)

    def __repr__(self) -> str:
        # With the class, as that is where help() has what it can do.
        settings = f"batch_size={self.batch_size}, timeout={self.timeout}"
        return f"<{type(self).__name__} {self._self_engine.name}(), {settings}>"

    def _self_given(self, item: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        owner = self._self_bound_to[1]
        return given(item, args) if owner is None else (owner, *given(item, args))

    def _self_read(
        self, items: Any, more: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, Mapping[str, Any], bool]:
        """Return the items of a map, its constants, and whether it is known how many items there are."""
        takes = self._self_engine.takes
        found, constants = takes.bind(items, *more, **named)
        columns = found if takes.columns > 1 else (found,)
        sized = all(hasattr(each, "__len__") for each in columns)
        return zip(*columns) if takes.columns > 1 else found, constants, sized  # noqa: B905 - as map() does


class BatchedFunction(Blocking, _Batched[T, R, P]):
    """A function of one item, answered by calls of a function of a list. Made by `batched`. Any thread may call it.

    `T` is the type of the item, or of its entry in the first of several columns; `P` is what follows it.
    """

    _self_engine: ThreadEngine
    _self_bodies = "{use}.engine.call({item}{constants})", "{use}.engine.submit({item}, {owner}{constants})"

    @_found
    def __call__(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Block until the item is answered.

        Args:
            item: One entry of the list that the function gets.
            *args: One entry of each further list that it gets.
            **kwargs: What is the same for a whole batch. Only calls with equal ones share a batch.

        Returns:
            The result of this item.

        Raises:
            Exception: What the function raised, or returned for this item; each caller gets its own copy. Or what
                `weight` or `group_by` raised.
            BatchError: The batch gave no usable answer: see `BatchError`, `ResultCountError` and `MissingResultError`.
            WaitsForItselfError: This is inside a function, and the answer cannot come before its own batch has ended.
            TypeError: The function returned what cannot be results, say None or a string. Or this call has a wrong
                argument, or one that is not hashable where it must be; or `weight` returned no number.
            ValueError: `weight` returned a number that is negative or not finite.
            RuntimeError: The flush thread cannot be started.
            BufferFullError: `max_pending` items wait.
            ClosedError: `close()` or `aclose()` was called before, or the interpreter exits.
        """
        return self._self_call(item, *args, **kwargs)  # type: ignore[no-any-return]

    def submit(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Pass an item without blocking.

        A wrong argument, or an error of `weight` or `group_by`, is raised here, as in a call. To give one caller a time
        limit, use `future.result(timeout)` and, if that raises a `TimeoutError`, `future.cancel()`, else the item still
        runs.

        Args:
            item: One entry of the list that the function gets.
            *args: As in a call.
            **kwargs: As in a call.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; once its batch runs it cannot
            be cancelled. Its `result()` raises what a call would raise. Inside a function, `result()` and `exception()`
            raise a `WaitsForItselfError` where the answer could never come. `concurrent.futures.wait()` and
            `as_completed()` do so only for a future that was submitted inside a function; for any other they may wait
            for ever.

        Raises:
            RuntimeError: The flush thread cannot be started.
            BufferFullError: `max_pending` items wait.
            ClosedError: `close()` or `aclose()` was called before, or the interpreter exits.
        """
        # Of a method, or where a test has put another one in place of that which a function has of its own.
        return self._self_submit(*self._self_given(item, args), **kwargs)  # type: ignore[no-any-return]

    @overload
    def map(
        self, items: Iterable[T], /, *more: Iterable[Any], return_exceptions: Literal[False] = False, **kwargs: Any
    ) -> Generator[R, None, None]: ...
    @overload
    def map(
        self, items: Iterable[T], /, *more: Iterable[Any], return_exceptions: bool, **kwargs: Any
    ) -> Generator[R | Exception, None, None]: ...
    def map(
        self, items: Iterable[T], /, *more: Iterable[Any], return_exceptions: bool = False, **kwargs: Any
    ) -> Generator[Any, None, None]:
        """Pass many items, from one thread. Other callers' items may join the batches.

        What it reads does not count against `max_pending`.

        Args:
            items: Read at most two batches ahead of the results. From an iterator, which has no length, one item at a
                time: such a map fills its batches only where they may wait, so pass a list, or set a timeout.
            *more: For a function of several columns, the entries of the others; ends with the shortest, as `map` does.
            return_exceptions: Whether an item's error stands in the place of its result, as in `asyncio.gather`, and
                the rest goes on.
            **kwargs: As in a call.

        Returns:
            A lazy iterator over the results, in order. The first error is raised in place of its result, with a note of
            the item's number, and ends the map. An error of `items` itself does so even with `return_exceptions`. Then,
            or when the map is dropped or closed, items in no batch yet are taken out. When the items end, what waits is
            made due, other callers' items too. With `timeout=None` and `group_by` or `dedupe`, that is also done when
            nothing will fill the batch of the next result. Inside a function, a result that cannot come before its own
            batch has ended raises a `WaitsForItselfError`.

        Raises:
            TypeError: `items` is not iterable, or an argument is missing or unknown. Only this is raised at once; all
                else that a call would raise comes from the iterator.
            ClosedError: `close()` or `aclose()` was called before, or the interpreter exits.
        """
        found, constants, sized = self._self_read(items, more, kwargs)
        owner = self._self_bound_to[1]
        return self._self_engine.map(iter(found), owner, constants, chunked=sized, returns_errors=return_exceptions)


class BatchedCoroutineFunction(_Batched[T, R, P]):
    """A coroutine function of one item, answered by calls with lists. Made by `batched`.

    Coroutines in any number of event loops may call it. Items from one loop share batches, which run there. Its
    parameters and errors are those of `BatchedFunction`.
    """

    _self_engine: "LoopEngines"
    _self_bodies = None, "{use}.engine.submit({item}, {owner}{constants}).future"

    @_found
    def __call__(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Await the item's result. Takes and raises what a call of a `BatchedFunction` does.

        Cancelling takes the item out of the buffer; see `submit`. So `asyncio.wait_for()` gives one caller a time
        limit.
        """
        return self._self_call(item, *args, **kwargs)  # type: ignore[no-any-return]

    def submit(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[R]":
        """Pass an item to the running event loop. Under `asyncio.gather` several times cheaper than a task per item.

        A wrong argument, or an error of `weight` or `group_by`, is raised here. To give one caller a time limit, use
        `asyncio.wait_for(future, timeout)`, which cancels the future.

        Args:
            item: One entry of the list that the function gets.
            *args: As in a call.
            **kwargs: As in a call.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; if it is in a batch already,
            only its answer is dropped, and when all callers of a batch have left its task is cancelled. An error that
            nobody retrieves is not logged. Submitted inside a function, and awaited in a batch that must end before its
            answer can come, it gets a `WaitsForItselfError`.

        Raises:
            RuntimeError: No event loop runs here.
            BufferFullError: `max_pending` items wait.
            ClosedError: `aclose()` was called before.
        """
        # Of a method, or where a test has put another one in place of that which a function has of its own.
        return self._self_submit(*self._self_given(item, args), **kwargs)  # type: ignore[no-any-return]

    @overload
    def map(
        self,
        items: Iterable[T] | AsyncIterable[T],
        /,
        *more: Iterable[Any],
        return_exceptions: Literal[False] = False,
        **kwargs: Any,
    ) -> AsyncGenerator[R, None]: ...
    @overload
    def map(
        self, items: Iterable[T] | AsyncIterable[T], /, *more: Iterable[Any], return_exceptions: bool, **kwargs: Any
    ) -> AsyncGenerator[R | Exception, None]: ...
    def map(
        self,
        items: Iterable[T] | AsyncIterable[T],
        /,
        *more: Iterable[Any],
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> AsyncGenerator[Any, None]:
        """Pass many items, from one task, as `BatchedFunction.map` does from one thread.

        Args:
            items: Read at most two batches ahead of the results. An asynchronous iterable is read by a task of its own,
                so that no result waits for the next item to come.
            *more: For a function of several columns, the entries of the others. Then no iterable may be asynchronous.
            return_exceptions: As in `BatchedFunction.map`.
            **kwargs: As in a call.

        Returns:
            A lazy asynchronous iterator over the results, in order. When the items end, what waits in this loop is made
            due, other callers' items too.

        Raises:
            TypeError: `items` is not iterable, or an argument is missing or unknown. Only this is raised at once; all
                else that a call would raise comes from the iterator.
            ClosedError: `aclose()` was called before.
        """
        found, constants, _ = self._self_read(items, more, kwargs)
        return self._self_engine.map(found, self._self_bound_to[1], constants, returns_errors=return_exceptions)

    if not TYPE_CHECKING:

        def close(self, *_: object, **__: object) -> None:
            """Raises a TypeError: use `aclose()`, `adrain()` or `async with`."""
            name = self._self_engine.name
            raise TypeError(f"{name}() is `async def`: use `async with`, or `await` aclose() or adrain()")

        drain = __enter__ = close

    @property
    def __code__(self) -> CodeType:
        return _signature.as_coroutine_code(getattr(self.__wrapped__, "__code__", self._self_engine.aio.__code__))


class BatchedMethod(Generic[S_co, F_co], _Decorated):
    """A method of one item, answered by calls of a method of a list. Made by `batched` in a class.

    `instance.method` is a `BatchedFunction` or `BatchedCoroutineFunction` with a buffer of this instance's own, which
    goes with the instance; `Class.method` is this object. It has no buffer, so asking it for `submit`, `stats`,
    `timeout` and the like is an AttributeError. Instances need not be hashable, but weakly referenceable.
    """

    def __init__(self, function: Any, kind: Callable[..., F_co], begin: Callable[..., Any], *, of_class: bool) -> None:
        super().__init__(function)  # type: ignore[call-arg]
        self._self_kind, self._self_begin, self._self_of_class = kind, begin, of_class
        self._self_attribute: str = function.__name__
        # By id(), since instances may be equal or unhashable. An entry goes with its instance, before that id can be
        # given to another one; should it not, for Ctrl-C, the weak reference says whose it was.
        self._self_engines: dict[int, tuple[weakref.ref[object], Any]] = {}

    def __set_name__(self, owner: type, name: str) -> None:
        self._self_attribute = name

    @overload
    def __get__(self: "BatchedMethod[type[Any], F_co]", instance: object, owner: type) -> F_co: ...
    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> F_co: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self._self_of_class:
            instance = type(instance) if owner is None else owner
        elif instance is None:
            return self
        return self._self_kind(self, instance)

    def _self_begin_for(self, instance: object) -> tuple["weakref.ref[object]", Any]:
        engines, key = self._self_engines, id(instance)
        kind = instance if isinstance(instance, type) else type(instance)
        name = f"{kind.__name__}.{self._self_attribute}"

        try:
            reference = weakref.ref(instance, lambda _: engines.pop(key, None))  # and with it all access to the engine
        except TypeError:
            remedy = f"add '__weakref__' to the __slots__ of {kind.__name__}"
            if hasattr(kind, "__dataclass_fields__"):
                remedy = "write @dataclass(slots=True, weakref_slot=True)"
            elif issubclass(kind, tuple):
                remedy = "no tuple can, so use a @dataclass(frozen=True)"
            raise TypeError(
                f"{name}() needs an instance that can be weakly referenced, since its buffer goes with it: {remedy}"
            ) from None
        function = _bound_weakly(self.__wrapped__, reference)
        begun = reference, self._self_begin(function, name, replace(self._self_options))
        found = engines.setdefault(key, begun)  # another thread may come first
        if found[0]() is not instance:
            engines[key] = found = begun
        return found

    def __call__(self: "BatchedMethod[Any, Callable[K, X]]", instance: Any, /, *args: K.args, **kwargs: K.kwargs) -> X:
        """Call it as a method of the instance, as Python's own `Class.method(instance, item)` does."""
        # From Python 3.13 on a class method above @batched comes here too, with its class.
        name, is_class = self._self_attribute, isinstance(instance, type)
        if not (is_class or any(type(vars(kind).get(name)) is BatchedMethod for kind in type(instance).__mro__)):
            raise TypeError(
                f"{name_of(self.__wrapped__)}() is a method: call it of an instance, or with one as its first "
                f"argument, got {instance!r}"
            )
        return self.__get__(instance, instance)(*args, **kwargs)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        options = self._self_options
        settings = f"batch_size={options.batch_size}, timeout={options.timeout}"
        return f"<{type(self).__name__} {name_of(self.__wrapped__)}(), {settings}, a buffer per instance>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if hasattr(BatchedFunction, name) and name not in _FIXED:  # both kinds have the same names
                raise self._self_not_mine(name, "asked")
            return super().__getattr__(name)

        def __setattr__(self, name: str, value: object) -> None:
            if name in CHECKS:
                raise self._self_not_mine(name, "set")
            super().__setattr__(name, value)

        def _self_not_mine(self, name: str, done: str) -> AttributeError:
            return AttributeError(
                f"{name_of(self.__wrapped__)}() has a buffer for each instance, so {name} must be {done} of the "
                f"method of an instance (if it is a class method, put @batched above @classmethod)"
            )


def _bound_weakly(function: Callable[..., Any], reference: "weakref.ref[object]") -> Callable[..., Any]:
    """Bind a method without keeping its instance alive. Whoever waits for an answer does that."""

    def run(*lists: list[Any], **constants: Any) -> Any:
        instance = reference()
        if instance is None:
            raise ReferenceError("the instance that was to answer is gone")
        return function.__get__(instance, type(instance))(*lists, **constants)

    return run


def _of_items(function: Callable[..., Any], takes: Takes) -> Callable[..., Any]:
    """Return a function of one list, of items, that passes each column as a list of its own."""
    if takes.columns == 1 and not takes.unnamed:
        return function

    def run(items: list[Any], /, **constants: Any) -> Any:
        columns = map(list, zip(*items, strict=True)) if takes.columns > 1 else [items]
        unnamed = [constants.pop(name, default) for name, default in takes.unnamed.items()]
        return function(*columns, *unnamed, **constants)

    return run


def _findable(function: Any, within: Callable[..., Any], attribute: str) -> Any:
    """Return the list function, or one of its options, as pickle shall see it: under a name at which it is found.

    That is an attribute of what we make of the list function, which itself is found where the list function was.
    """
    if type(function) is not FunctionType or type(within) is not FunctionType:
        return function
    found = _signature.copied(function)
    found.__module__, found.__qualname__ = within.__module__, f"{within.__qualname__}.{attribute}"
    return found


def _restored(function: Callable[..., Any], options: Options, of_class: bool) -> Any:
    """Return what was pickled: the one of this process where it stands at its place, else one made anew.

    A `function` that comes from `_findable()` is pickled by pickle as a name, and by cloudpickle as a name or as a
    whole, by its own rules.
    """
    if type(function) is FunctionType:
        place = function.__qualname__.removesuffix("._self_list_function")
        with suppress(AttributeError, KeyError):
            found = attrgetter(place)(sys.modules[function.__module__])
            if found._self_list_function is function:
                return found
        function.__qualname__ = place
    return _decorate(options, classmethod(function) if of_class else function)


def _by_name(batched: X) -> X:
    """Say what is wrong where the function or an option is passed by position."""
    make: Any = batched

    @wraps(make)
    def checked(*args: object, **options: Any) -> Any:
        if args:
            got = ", ".join(map(repr, args))
            raise TypeError(
                f"batched() takes its options by name, and what it returns takes the function: write "
                f"@batched(batch_size=8) above it; got batched({got})"
            )
        return make(**options)

    return cast("X", checked)


@_by_name
def batched(
    *,
    batch_size: int,
    timeout: float | None = 0.0,
    weight: Callable[..., float] | None = None,
    max_weight: float | None = None,
    group_by: Callable[..., Hashable] | None = None,
    dedupe: bool = False,
    isolate: bool | type[Exception] | tuple[type[Exception], ...] = False,
    concurrency: int = 1,
    max_pending: int | None = None,
    on_batch: Callable[[BatchReport], object] | None = None,
) -> Decorator:
    """Turn a function of a list into a function of one item.

    Calls made close together, from any number of threads, are answered by one call of the function. It runs in a thread
    of its own, the flush thread, in an empty context (`contextvars`). It runs at most `concurrency` times at once;
    while it waits for an answer inside, it may be called again. The function gets a list of items that it may keep or
    change, and returns one result per item, in the same order: as a list or anything else that has a length and
    iterates in order; as a mapping from item to result; as an iterator, where each caller goes on as soon as its result
    is yielded; or as a thread-safe future of one of these, from an executor. An `Exception` among the results is raised
    at its own caller. If the function raises, each caller of that batch gets a copy of the error.

    Further parameters by position are further lists (columns), with one entry per item each: `def f(xs, ys)` is called
    `f(x, y)`, and the item is the tuple of both; type checkers check up to three. Keyword-only parameters, and those
    with a default (except the first), are the same for a whole batch. What is passed for them must be hashable. Only
    calls with equal ones, in type and value, share a batch.

    An `async def` function, which may be an asynchronous generator, becomes a coroutine function of one item. It runs
    on the event loop of its callers, each batch in a task with an empty context, without threads; calls made on one
    loop share batches, and all limits are those of one loop. When all callers of a batch have left, its task is
    cancelled.

    The function may use batched functions, itself included, directly or in a ring. `submit` runs nothing: the item
    waits like any other. While a batch runs it has a turn, one of `concurrency`. A wait inside (a call, `map`,
    `result()`, or `await` of what was passed inside) lends this turn if the answer needs it: batches of that item's
    group run meanwhile, oldest first, up to the one that holds the item. A `def` function runs them on its own threads,
    on the stack of what waits, so the recursion limit bounds the depth. If no lending could end such a wait, it raises
    a `WaitsForItselfError`. Not every other wait is seen: one for another thread that calls the function may hang (see
    'Calls from inside' in the documentation).

    A batch is due when it is full, or when its oldest item has waited for `timeout` seconds. It is taken only when the
    function is free to run; until then items go on joining. So with a timeout of 0 nobody waits for company, and
    batches form by themselves while the function is busy. Source: a batch is due by the rule of TensorFlow's
    `shared_batch_scheduler.h`; that a function of a list is called with one item is from dataloader.

    Args:
        batch_size: Most items in one call of the function, at least 1.
        timeout: Longest time in seconds that the oldest item waits for others. 0 means no wait. None means until the
            batch is full, or until `flush()`, `drain()`, `close()` or the end of a `map()`. It does not limit the
            function's run time or a caller's total wait; for that see `submit`.
        weight: A function that is called with the item, or one entry of each column, and returns what it weighs
            (tokens, bytes): a number of at least 0. Needs `max_weight`.
        max_weight: Most that the items of a batch may weigh together. An item that does not fit opens the next batch,
            and one that is heavier than this runs alone. Needs `weight`.
        group_by: A function that is called like `weight`, and returns something hashable. Only items for which that is
            equal share a batch. Of the batches that are due, the one whose oldest item has waited longest goes first.
        dedupe: Whether items that wait at once and are equal, in type and value, are given to the function once. They
            count once for `batch_size`, and all their callers get the very same object. Items must be hashable. Nothing
            is remembered from batch to batch.
        isolate: Whether a batch for which the function raises an `Exception` is halved and the halves are run again, so
            that in the end only the caller of a bad item gets an error: at most 2n - 1 calls for n items. Or the type
            of exception, or a tuple of types, to do this for; leave out one that says that the service is busy. A
            second run of the function must be safe.
        concurrency: Most batches in flight at once, not counting those that wait inside and have lent their turn. A
            `def` function that blocks runs in up to that many threads, one that returns futures in one. On an event
            loop a batch that lent its turn goes on once its answer is there, so for a moment one more may run for each
            turn that is lent.
        max_pending: Most items that wait in the buffer; None means no limit. When so many wait they are due, and a
            further call gets a `BufferFullError`. Items of `map()` do not count and are never refused; each map may add
            up to two batches to `stats.pending`.
        on_batch: A function that is called with a `BatchReport` when a batch has ended, before its last callers go on,
            by the thread or on the loop that ran it. If it raises, the error is logged. If it waits for an answer of
            the same function, the batch that gives it may go unreported.

    `weight` and `group_by` are called by each caller on its own thread, also while the function runs. So what they use
    must be thread-safe; a fast tokenizer is not (see 'Models' in the documentation). What they raise is raised at that
    call alone.

    Ctrl-C in a caller that blocks takes its item out and touches no other call. If it strikes on an event loop, or on
    the main thread in `on_batch` or in a callback of a future that the function returned, later calls work, but calls
    of that batch may get no answer and wait for ever. Under `asyncio.run`, which makes the first one a cancellation,
    every call ends.

    A function written in a class is a method if it must be given two parameters or more, and has a buffer for each
    instance. A class method has one for each class, a static method has one. A buffer does not keep its instance or
    class alive, but items that wait in it do.

    You need not close it: what waits is answered at exit, and when the function is dropped; but items of an `async def`
    function only while their event loop runs.

    Returns:
        A decorator from `list[T] -> list[R]` to `T -> R`; see `BatchedFunction`, `BatchedCoroutineFunction` and, for
        methods, `BatchedMethod`.

    Raises:
        TypeError: (On decorating) the function takes no list by position, or `*args`; an option is of the wrong type;
            or `weight` or `max_weight` stands alone.
        ValueError: (On decorating) an option is out of its range.
    """
    decorate: Any = partial(_decorate, Options(**locals()))
    return decorate  # type: ignore[no-any-return]


def _decorate(options: Options, function: Any, /) -> Any:
    options = replace(options)  # of this function alone
    of_class, is_static = isinstance(function, classmethod), isinstance(function, staticmethod)
    if of_class or is_static:
        function = function.__func__
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"batched() decorates a function of one list, got {function!r}")
    if issubclass(type(function), _Decorated):
        raise TypeError(f"{function!r} is batched already")
    name = name_of(function)
    method = of_class or (_signature.is_method(function) and not is_static)
    takes = _signature.takes_of(name, function, method=method, static=is_static)
    options.check(name)
    for option in ("weight", "group_by", "on_batch"):
        value = getattr(options, option)
        if "<" in getattr(value, "__qualname__", ""):  # a lambda, or in another function
            setattr(options, option, _findable(value, function, f"_self_options.{option}"))
    kind: Any = BatchedFunction
    make_engine: Any = ThreadEngine
    if _signature.is_coroutine_function(function):
        from ._asyncio import LoopEngines  # asyncio is imported when it is needed

        kind, make_engine = BatchedCoroutineFunction, LoopEngines
    call, submit = kind._self_bodies
    make_call = call and takes.define(call, kind.__call__.__doc__)
    make_submit = takes.define(submit, kind.submit.__doc__)

    def begin(run: Callable[..., Any], name: str, options: Options) -> tuple[_Access, Any]:
        access = _Access(make_engine(_of_items(run, takes), name, options, takes))
        if isinstance(options.on_batch, Observer):
            options.on_batch.watch(access.engine)
        # Calls, threads, timers and tasks hold the engine alone: so it is known when the user drops all that he has.
        weakref.finalize(access, drop, weakref.ref(access.engine)).atexit = False
        entries = make_call and make_call(access), make_submit(access)
        entries[1].__name__ = "submit"  # so help() calls it so
        return access, entries

    made: _Decorated
    if method:
        made = BatchedMethod(function, kind, begin, of_class=of_class)
        made._self_options = options
    else:
        made = kind(function, *begin(function, name, options))
    made._self_list_function = _findable(function, function, "_self_list_function")
    return made


# So that of a missing item Python says what it says of the user's method.
BatchedFunction.submit.__defaults__ = BatchedCoroutineFunction.submit.__defaults__ = (MISSING,)


def drop(known: "Callable[[], ThreadEngine | LoopEngines | None]") -> None:
    """Let an engine answer what waits, and end, as nobody can call any more."""
    engine = known()
    if engine is not None:
        engine.drop()
