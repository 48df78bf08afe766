"""What does the user touch?

`batched` and what it makes of a function. The only file that knows wrapt and signatures.
"""

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from inspect import Parameter, Signature
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, get_args, get_origin, overload

from ._buffer import Buffer
from ._stats import Stats
from ._threads import ThreadBatcher

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class SizedIterable(Protocol[R_co]):
    """Anything with a length that iterates in order: list, tuple, array, tensor, series."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[R_co]: ...


class FutureLike(Protocol[R_co]):
    """Anything that tells when it is done: the future of an executor or of an engine."""

    def result(self) -> R_co: ...
    def add_done_callback(self, fn: Callable[[Any], Any], /) -> Any: ...


if TYPE_CHECKING:
    import asyncio

    from ._asyncio import LoopBatcher

    # Not wrapt's class: it answers to any attribute, so a checker would let `f.sumbit` pass.
    _Wrapper = object
else:
    from wrapt import FunctionWrapper as _Wrapper


class _Batched(Generic[T, R], _Wrapper):
    """What both kinds of decorated functions have in common."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[[list[T]], Any]

    def __init__(self, function: Callable[[list[T]], Any], batcher: "ThreadBatcher | LoopBatcher") -> None:
        if not TYPE_CHECKING:
            super().__init__(function, _not_called)
        # Names that begin so stay here; wrapt passes all others on to the function.
        self._self_batcher = batcher

    def flush(self) -> None:
        """Make what waits due now. Does not wait for the answers. Any thread may call."""
        self._self_batcher.flush()

    @property
    def stats(self) -> Stats:
        """What the function has done so far."""
        return self._self_batcher.stats

    @property
    def batch_size(self) -> int:
        """Most items in one call of the function. May be set at any time, also for what waits."""
        return self._self_batcher.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._self_batcher.batch_size = value

    @property
    def timeout(self) -> float | None:
        """Seconds that the oldest item waits for others. May be set at any time, also for what waits."""
        return self._self_batcher.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._self_batcher.timeout = value

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            # Else it would be that of the function: a method, of which inspect would take away the first parameter.
            return FunctionType

    @property
    def __signature__(self) -> Signature:
        return _signature_of_one_item(self.__wrapped__)

    def __repr__(self) -> str:
        return f"<batched {self._self_batcher.name}(), batch_size={self.batch_size}, timeout={self.timeout}>"

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        # As a static method: a function of one parameter, the list, has none for an instance.
        return self

    # A function is copied and pickled by reference; the buffer and the callers in it stay with the original.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> str:
        return self.__wrapped__.__qualname__


class BatchedFunction(_Batched[T, R]):
    """A function of one item, answered by calls of a function of a list. Made by `batched`. Any thread may call it."""

    def __init__(self, function: Callable[[list[T]], Any], batcher: ThreadBatcher) -> None:
        super().__init__(function, batcher)
        self._self_batcher: ThreadBatcher = batcher
        self._self_call: Callable[[T], R] = batcher.call  # one step less for each call
        self._self_aio: Callable[[T], Coroutine[Any, Any, R]] | None = None

    def __call__(self, item: T, /) -> R:
        """Block until the item is answered.

        Args:
            item: One entry of the list that the function gets.

        Returns:
            The result of this item.

        Raises:
            Exception: Whatever the function raised, as a copy of this caller's own.
            BatchError: The function raised what is no `Exception`, or gave this item no result.
            TypeError: The function returned what cannot be results.
            ClosedError: `close()` was called before, or the interpreter exits.
        """
        return self._self_call(item)

    def submit(self, item: T, /) -> Future[R]:
        """Pass an item without blocking.

        Args:
            item: One entry of the list that the function gets.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; if it is in a batch already,
            only its answer is dropped.

        Raises:
            ClosedError: `close()` was called before, or the interpreter exits.
        """
        return self._self_batcher.submit(item)

    @property
    def aio(self) -> Callable[[T], Coroutine[Any, Any, R]]:
        """A coroutine function: awaits an item's result from any event loop, and does not block it.

        The function still runs in the flush thread, and items from event loops and from threads share batches.
        Cancelling takes the item out of the buffer; if it is in a batch already, only its answer is dropped. Raises
        what a call that blocks would raise.
        """
        if self._self_aio is None:
            from ._asyncio import awaitable  # asyncio is imported when it is needed

            self._self_aio = awaitable(self._self_batcher, f"{self._self_batcher.name}.aio")
        return self._self_aio

    def map(self, items: Iterable[T], /) -> Generator[R, None, None]:
        """Pass many items, from one thread. Other callers' items may join the batches.

        Args:
            items: Read at most two batches ahead of the results; one item at a time if it has no length.

        Returns:
            A lazy iterator over the results, in order. The first error is raised where its result would stand and ends
            it; what was read by then and is in no batch yet is taken out. Dropping or closing it does the same. When
            the items end, what waits is made due, other callers' items too.

        Raises:
            TypeError: `items` is not iterable.
            ClosedError: `close()` was called before, or the interpreter exits.
        """
        return self._self_batcher.map(items)

    def close(self) -> None:
        """Refuse what comes, and wait until what was accepted is answered.

        May be called often and from anywhere. From inside the function it does not wait, as it would wait for itself.
        """
        self._self_batcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    if not TYPE_CHECKING:

        def __aenter__(self) -> None:
            raise TypeError(f"{self._self_batcher.name}() is a `def` function: close it by `with` or close()")

        aclose = __aenter__


class BatchedCoroutineFunction(_Batched[T, R]):
    """A coroutine function of one item, answered by calls of one of a list. Made by `batched`.

    Coroutines in any number of event loops may call it. Items from one loop share batches, which run there.
    """

    def __init__(self, function: Callable[[list[T]], Any], batcher: "LoopBatcher") -> None:
        super().__init__(function, batcher)
        self._self_batcher: LoopBatcher = batcher
        self._self_call: Callable[[T], Coroutine[Any, Any, R]] = batcher.awaitable()

    def __call__(self, item: T, /) -> Coroutine[Any, Any, R]:
        """Await the item's result. Cancelling takes the item out of the buffer; see `submit`.

        Args:
            item: One entry of the list that the function gets.

        Returns:
            The result of this item.

        Raises:
            Exception: Whatever the function raised, as a copy of this caller's own.
            BatchError: The function raised what is no `Exception` (as when its task is cancelled), or gave this item no
                result.
            TypeError: The function returned what cannot be results.
            ClosedError: `aclose()` was called before.
        """
        return self._self_call(item)

    @property
    def aio(self) -> Callable[[T], Coroutine[Any, Any, R]]:
        """The same as a call, so that it need not matter which kind of function this is."""
        return self._self_call

    def submit(self, item: T, /) -> "asyncio.Future[R]":
        """Pass an item to the running event loop. Under `asyncio.gather` several times cheaper than a task per item.

        Args:
            item: One entry of the list that the function gets.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; if it is in a batch already,
            only its answer is dropped. An error that nobody asks it for is not logged.

        Raises:
            RuntimeError: No event loop runs here.
            ClosedError: `aclose()` was called before.
        """
        return self._self_batcher.submit(item)

    def map(self, items: Iterable[T] | AsyncIterable[T], /) -> AsyncGenerator[R, None]:
        """Pass many items, from one task. Other callers' items may join the batches.

        Args:
            items: Read at most two batches ahead of the results. An asynchronous iterable is read by a task of its own,
                so that no result waits for the next item to come.

        Returns:
            A lazy asynchronous iterator over the results, in order. The first error is raised where its result would
            stand and ends it; what was read by then and is in no batch yet is taken out. Closing it does the same. When
            the items end, what waits in this loop is made due, other callers' items too.

        Raises:
            TypeError: `items` is not iterable.
            ClosedError: `aclose()` was called before.
        """
        return self._self_batcher.map(items)

    async def aclose(self) -> None:
        """Refuse what comes, in all event loops, and wait until what this one accepted is answered.

        What other loops accepted is answered there. May be called often. From inside the function it does not wait, as
        it would wait for itself.
        """
        await self._self_batcher.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    if not TYPE_CHECKING:

        def __enter__(self) -> None:
            raise TypeError(f"{self._self_batcher.name}() is `async def`: close it by `async with` or `await` aclose()")

        close = __enter__

    @property
    def __code__(self) -> CodeType:
        # inspect.iscoroutinefunction() looks at its flags, and those of an asynchronous generator say no.
        code: CodeType = getattr(self.__wrapped__, "__code__", self._self_call.__code__)
        return code.replace(co_flags=code.co_flags & ~inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE)


class Decorator(Protocol):
    """What `batched(...)` returns. Its overloads find out what each caller gets of what the function returns."""

    # A mapping has a length and iterates, but over its keys: so it comes first.
    @overload
    def __call__(self, f: Callable[[list[T]], FutureLike[Mapping[Any, R | Exception]]], /) -> BatchedFunction[T, R]: ...
    @overload
    def __call__(
        self, f: Callable[[list[T]], FutureLike[SizedIterable[R | Exception]]], /
    ) -> BatchedFunction[T, R]: ...
    @overload
    def __call__(self, f: Callable[[list[T]], Mapping[Any, R | Exception]], /) -> BatchedFunction[T, R]: ...
    @overload
    def __call__(self, f: Callable[[list[T]], Iterator[R | Exception]], /) -> BatchedFunction[T, R]: ...
    @overload
    def __call__(self, f: Callable[[list[T]], SizedIterable[R | Exception]], /) -> BatchedFunction[T, R]: ...
    @overload
    def __call__(
        self, f: Callable[[list[T]], Coroutine[Any, Any, Mapping[Any, R | Exception]]], /
    ) -> BatchedCoroutineFunction[T, R]: ...
    @overload
    def __call__(
        self,
        f: Callable[[list[T]], Coroutine[Any, Any, SizedIterable[R | Exception] | Iterator[R | Exception]]],
        /,
    ) -> BatchedCoroutineFunction[T, R]: ...
    @overload
    def __call__(self, f: Callable[[list[T]], AsyncIterator[R | Exception]], /) -> BatchedCoroutineFunction[T, R]: ...


def batched(*, batch_size: int, timeout: float | None = 0.0) -> Decorator:
    """Turn a function of a list into a function of one item.

    Calls made close together, from any number of threads, are answered by one call of the function. It runs in a
    thread of its own, in an empty context (`contextvars`), and never twice at the same time; only a call made from
    inside it runs at once, where it is made, as it would wait for itself. The function gets a list of items that it
    may keep or change, and returns one result per item, in the same order: as a list or anything else that has
    a length and iterates in order; as a mapping from item to result; as an iterator, where each caller goes on as soon
    as its result is yielded; or as a thread-safe future of one of these, from an executor. An `Exception` among the
    results is raised at its own caller. If the function raises, each caller of that batch gets a copy of the error.

    An `async def` function, which may be an asynchronous generator, becomes a coroutine function of one item. It runs
    on the event loop of its callers, each batch in a task with an empty context, without threads; calls made on one
    loop share batches, and on one loop it never runs twice at the same time.

    A batch is taken only when the function is free to run; until then items go on joining. So with a timeout of 0
    nobody waits for company, and batches form by themselves while the function is busy. How many items wait is
    unbounded. Source: a batch is due by the rule of TensorFlow's `shared_batch_scheduler.h`; that a function of a list
    is called with one item is from dataloader.

    Args:
        batch_size: Most items in one call of the function, at least 1.
        timeout: Longest time in seconds that the oldest item waits for others; 0 means no wait, None that only a full
            batch, `flush()` or `close()` ends it. Bounds neither the function's own run time nor a caller's total wait.

    Returns:
        A decorator from `list[T] -> list[R]` to `T -> R`: see `BatchedFunction` and `BatchedCoroutineFunction`.

    Raises:
        TypeError: (On decorating) the function does not take one list, `batch_size` is no int, `timeout` is no number.
        ValueError: (On decorating) `batch_size` is below 1, or `timeout` is negative or not finite.
    """

    def decorate(function: Callable[[list[Any]], Any], /) -> Any:
        name = _check_function(function)
        buffer: Buffer[Any] = Buffer(name, batch_size, timeout)
        if _is_coroutine_function(function):
            from ._asyncio import LoopBatcher  # asyncio is imported when it is needed

            return BatchedCoroutineFunction(function, LoopBatcher(function, name, buffer))
        return BatchedFunction(function, ThreadBatcher(function, name, buffer, awaitable=f"{name}.aio(item)"))

    return decorate


def _not_called(*_: object) -> None:
    """Stand where wrapt wants a wrapper function; `__call__` is overridden."""


def _check_function(function: Callable[..., Any]) -> str:
    """Return the name of a function that takes one list, or raise what says why it does not."""
    if not callable(function) or isinstance(function, (type, staticmethod, classmethod)):
        raise TypeError(f"batched() decorates a function of one list, got {function!r}")
    if issubclass(type(function), _Batched):
        raise TypeError(f"{function!r} is batched already")
    name: str = getattr(function, "__name__", type(function).__name__)
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, without a signature
        return name
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if kinds != [Parameter.POSITIONAL_OR_KEYWORD] and kinds != [Parameter.POSITIONAL_ONLY]:
        names = [parameter.replace(annotation=Parameter.empty) for parameter in signature.parameters.values()]
        takes = Signature(names)
        raise TypeError(f"{name}() must take one parameter, the list of items; it takes {takes}")
    return name


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    # Also an object whose __call__() is one.
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, type(function).__call__)
    )


def _annotations_of_one_item(self: _Batched[Any, Any]) -> dict[str, Any]:
    signature = self.__signature__
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    annotations["return"] = signature.return_annotation
    return {name: annotation for name, annotation in annotations.items() if annotation is not Parameter.empty}


for _kind in (BatchedFunction, BatchedCoroutineFunction):
    # In each class itself: Python makes an empty one where it is missing, as soon as somebody asks the class.
    setattr(_kind, "__annotations__", property(_annotations_of_one_item))  # noqa: B010 - a type checker forbids it


def _signature_of_one_item(function: Callable[..., Any]) -> Signature:
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may not be importable here
        signature = inspect.signature(function)
    (parameter,) = signature.parameters.values()
    return signature.replace(
        parameters=[
            parameter.replace(
                kind=Parameter.POSITIONAL_ONLY,
                default=Parameter.empty,
                annotation=_entry(parameter.annotation),
            )
        ],
        return_annotation=_entry(signature.return_annotation),
    )


def _entry(annotation: Any) -> Any:
    """Return the annotation of one entry of a list, mapping, iterator or future; empty where it does not say."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not isinstance(origin, type) or not arguments:
        return Parameter.empty
    if issubclass(origin, Mapping):
        return arguments[-1]
    if hasattr(origin, "add_done_callback"):
        return _entry(arguments[0])
    # Not every generic class: the first argument of a numpy array's annotation is its shape.
    if issubclass(origin, (Sequence, Iterator, AsyncIterator)) or origin in (Iterable, Collection, AsyncIterable):
        return arguments[0]
    return Parameter.empty
