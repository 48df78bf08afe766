"""What does the user touch?

`batched` and what it makes of a function or a method. The only file that knows wrapt, and how Python binds methods.
"""

import copy
import sys
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import Future
from functools import reduce, update_wrapper
from inspect import Signature
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, overload

from ._buffer import Buffer
from ._signature import (
    annotations_of_one_item,
    as_coroutine_code,
    check_function,
    is_coroutine_function,
    is_method,
    name_of,
    signature_of_one_item,
)
from ._stats import Stats
from ._threads import ThreadBatcher

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
F = TypeVar("F", bound="BatchedFunction[Any, Any] | BatchedCoroutineFunction[Any, Any]")


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


class _Decorated(_Wrapper):
    """What `batched` makes: it looks like the function, but takes one item where that takes a list."""

    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        if not TYPE_CHECKING:
            super().__init__(function, _not_called)

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            # Not that of the function: cloudpickle would take this for it, and leave the decorator behind.
            return type(self)

        def __str__(self) -> str:
            return repr(self)

    # What inspect asks a function for; a callable object has none of it.

    @property
    def __name__(self) -> str:
        name: str = getattr(self.__wrapped__, "__name__", type(self.__wrapped__).__name__)
        return name

    __defaults__ = None
    __kwdefaults__ = None

    @property
    def __signature__(self) -> Signature:
        return signature_of_one_item(self.__wrapped__)

    # A function is copied as itself. Pickled are the function and its options; the buffer and the callers stay here.

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
        raise NotImplementedError


class _Batched(Generic[T, R], _Decorated):
    """What both kinds of decorated functions have in common."""

    def __init__(
        self,
        function: Callable[[list[T]], Any],
        batcher: "ThreadBatcher | LoopBatcher",
        owner: object = None,
        method: "BatchedMethod[Any, Any] | None" = None,
    ) -> None:
        super().__init__(function)
        # Names that begin so stay here; wrapt passes all others on to the function.
        self._self_batcher = batcher
        self._self_bound_to = owner  # whose method this is, and kept alive by all calls that wait
        self._self_method = method
        if method is None:
            self._self_list_function = _findable(function)

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

    def __repr__(self) -> str:
        return f"<batched {self._self_batcher.name}(), batch_size={self.batch_size}, timeout={self.timeout}>"

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        # As a static method: this has no place for an instance. BatchedMethod has.
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._self_method is not None:
            return getattr, (self._self_bound_to, self._self_method._self_attribute)
        options = {"batch_size": self.batch_size, "timeout": self.timeout}
        return _restored, (self._self_list_function, *_place(self), options, None)


class BatchedFunction(_Batched[T, R]):
    """A function of one item, answered by calls of a function of a list. Made by `batched`. Any thread may call it."""

    _self_batcher: ThreadBatcher

    def __init__(
        self,
        function: Callable[[list[T]], Any],
        batcher: ThreadBatcher,
        owner: object = None,
        method: "BatchedMethod[Any, Any] | None" = None,
    ) -> None:
        super().__init__(function, batcher, owner, method)
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
        return self._self_batcher.submit(item, self._self_bound_to)

    @property
    def aio(self) -> Callable[[T], Coroutine[Any, Any, R]]:
        """A coroutine function: awaits an item's result from any event loop, and does not block it.

        The function still runs in the flush thread, and items from event loops and from threads share batches.
        Cancelling takes the item out of the buffer; if it is in a batch already, only its answer is dropped. Raises
        what a call that blocks would raise.
        """
        if self._self_aio is None:
            batcher = self._self_batcher
            if batcher.aio is None:
                from ._asyncio import awaits_thread  # asyncio is imported when it is needed

                batcher.aio = awaits_thread(f"{batcher.name}.aio")
            self._self_aio = MethodType(batcher.aio, (batcher, self._self_bound_to))
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
        return self._self_batcher.map(items, self._self_bound_to)

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

    _self_batcher: "LoopBatcher"

    def __init__(
        self,
        function: Callable[[list[T]], Any],
        batcher: "LoopBatcher",
        owner: object = None,
        method: "BatchedMethod[Any, Any] | None" = None,
    ) -> None:
        super().__init__(function, batcher, owner, method)
        self._self_call: Callable[[T], Coroutine[Any, Any, R]] = MethodType(batcher.aio, (batcher, owner))

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
        return self._self_batcher.submit(item, self._self_bound_to)

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
        return self._self_batcher.map(items, self._self_bound_to)

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
        return as_coroutine_code(getattr(self.__wrapped__, "__code__", self._self_batcher.aio.__code__))


class BatchedMethod(Generic[S_co, F], _Decorated):
    """A method of one item, answered by calls of a method of a list. Made by `batched` in a class.

    `instance.method` is a `BatchedFunction` or `BatchedCoroutineFunction` with a buffer of this instance's own, which
    goes with the instance; `Class.method` is this object. Instances need not be hashable, but weakly referenceable.
    """

    def __init__(
        self,
        function: Callable[[Any, list[Any]], Any],
        kind: type[F],
        begin: Callable[[Callable[[list[Any]], Any], str, Buffer[Any]], Any],
        options: dict[str, Any],
        *,
        of_class: bool,
    ) -> None:
        super().__init__(function)
        self._self_kind = kind
        self._self_begin = begin
        self._self_options = options
        self._self_of_class = of_class
        self._self_attribute: str = function.__name__
        self._self_list_function = _findable(function)
        # By id(), since instances may be equal or unhashable. An entry goes with its instance, before that id can be
        # given to another one; should it not, for Ctrl-C in forget(), the weak reference says whose it was.
        self._self_batchers: dict[int, tuple[weakref.ref[object], Any]] = {}

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
        entry = self._self_batchers.get(id(instance))
        batcher = entry[1] if entry is not None and entry[0]() is instance else self._begin(instance)
        return self._self_kind(self.__wrapped__.__get__(instance, type(instance)), batcher, instance, self)

    def _begin(self, instance: object) -> Any:
        batchers, key = self._self_batchers, id(instance)
        kind = instance if isinstance(instance, type) else type(instance)
        name = f"{kind.__name__}.{self._self_attribute}"

        def forget(_: object) -> None:
            batchers.pop(key, None)

        try:
            reference = weakref.ref(instance, forget)
        except TypeError:
            raise TypeError(
                f"{name}() needs an instance that can be weakly referenced, since its buffer goes with it: "
                f"add '__weakref__' to the __slots__ of {kind.__name__}"
            ) from None
        buffer: Buffer[Any] = Buffer(name, **self._self_options)
        entry = (reference, self._self_begin(_bound_weakly(self.__wrapped__, reference), name, buffer))
        found = batchers.setdefault(key, entry)  # another thread may come first
        if found[0]() is not instance:
            batchers[key] = found = entry
        return found[1]

    @overload
    def __call__(self: "BatchedMethod[Any, BatchedFunction[T, R]]", instance: Any, item: T, /) -> R: ...
    @overload
    def __call__(
        self: "BatchedMethod[Any, BatchedCoroutineFunction[T, R]]", instance: Any, item: T, /
    ) -> Coroutine[Any, Any, R]: ...
    def __call__(self, instance: Any, item: Any, /) -> Any:
        """Call it as a method of the instance, as Python's own `Class.method(instance, item)` does."""
        return self.__get__(instance, instance)(item)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._self_options.items())
        return f"<batched {name_of(self.__wrapped__)}(), {options}, a buffer per instance>"

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored, (self._self_list_function, *_place(self), self._self_options, self._self_of_class)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if hasattr(BatchedFunction, name):  # both kinds have the same names
                raise AttributeError(
                    f"{name_of(self.__wrapped__)}() has a buffer for each instance, so {name} must be asked of the "
                    f"method of an instance (if it is a class method, put @batched above @classmethod)"
                )
            return super().__getattr__(name)


def _bound_weakly(
    function: Callable[[Any, list[Any]], Any], reference: "weakref.ref[object]"
) -> Callable[[list[Any]], Any]:
    """Bind a method without keeping its instance alive. Whoever waits for an answer does that."""

    def run(items: list[Any]) -> Any:
        instance = reference()
        if instance is None:
            raise ReferenceError("the instance that was to answer is gone")
        return function.__get__(instance, type(instance))(items)

    return run


def _findable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the list function as pickle shall see it: under a name at which it, and not we, is found."""
    if type(function) is not FunctionType:
        return function
    found = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    update_wrapper(found, function)
    del found.__wrapped__  # type: ignore[attr-defined]
    found.__kwdefaults__ = function.__kwdefaults__
    found.__qualname__ = f"{function.__qualname__}._self_list_function"
    return found


def _place(function: _Decorated) -> tuple[str | None, str]:
    """Return the module of a function, and its name there."""
    return getattr(function, "__module__", None), getattr(function, "__qualname__", "")


def _restored(
    function: Callable[..., Any], module: str | None, qualname: str, options: dict[str, Any], of_class: bool | None
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
    decorate: Any = batched(**options)
    made: _Decorated = decorate(classmethod(function) if of_class else function)
    return made


# What a function may return, but for mappings.
Entries = SizedIterable[R | Exception] | Iterator[R | Exception]


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
    def __call__(self, f: Callable[[list[T]], Entries[R]], /) -> BatchedFunction[T, R]: ...
    @overload
    def __call__(
        self, f: Callable[[list[T]], Coroutine[Any, Any, Mapping[Any, R | Exception]]], /
    ) -> BatchedCoroutineFunction[T, R]: ...
    @overload
    def __call__(
        self, f: Callable[[list[T]], Coroutine[Any, Any, Entries[R]]], /
    ) -> BatchedCoroutineFunction[T, R]: ...
    @overload
    def __call__(self, f: Callable[[list[T]], AsyncIterator[R | Exception]], /) -> BatchedCoroutineFunction[T, R]: ...
    # The same for methods.
    @overload
    def __call__(
        self, f: Callable[[S, list[T]], FutureLike[Mapping[Any, R | Exception]]], /
    ) -> BatchedMethod[S, BatchedFunction[T, R]]: ...
    @overload
    def __call__(
        self, f: Callable[[S, list[T]], FutureLike[SizedIterable[R | Exception]]], /
    ) -> BatchedMethod[S, BatchedFunction[T, R]]: ...
    @overload
    def __call__(
        self, f: Callable[[S, list[T]], Mapping[Any, R | Exception]], /
    ) -> BatchedMethod[S, BatchedFunction[T, R]]: ...
    @overload
    def __call__(self, f: Callable[[S, list[T]], Entries[R]], /) -> BatchedMethod[S, BatchedFunction[T, R]]: ...
    @overload
    def __call__(
        self, f: Callable[[S, list[T]], Coroutine[Any, Any, Mapping[Any, R | Exception]]], /
    ) -> BatchedMethod[S, BatchedCoroutineFunction[T, R]]: ...
    @overload
    def __call__(
        self, f: Callable[[S, list[T]], Coroutine[Any, Any, Entries[R]]], /
    ) -> BatchedMethod[S, BatchedCoroutineFunction[T, R]]: ...
    @overload
    def __call__(
        self, f: Callable[[S, list[T]], AsyncIterator[R | Exception]], /
    ) -> BatchedMethod[S, BatchedCoroutineFunction[T, R]]: ...


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

    A method, that is a function written in a class, has a buffer for each instance, a class method one for each class;
    these go with the instance or class, which no buffer keeps alive, but what waits in it does. A static method is
    a function.

    Returns:
        A decorator from `list[T] -> list[R]` to `T -> R`: see `BatchedFunction`, `BatchedCoroutineFunction` and, for
        methods, `BatchedMethod`.

    Raises:
        TypeError: (On decorating) the function does not take one list, `batch_size` is no int, `timeout` is no number.
        ValueError: (On decorating) `batch_size` is below 1, or `timeout` is negative or not finite.
    """

    def decorate(function: Callable[..., Any], /) -> Any:
        of_class = isinstance(function, classmethod)
        if isinstance(function, (classmethod, staticmethod)):
            function = function.__func__
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"batched() decorates a function of one list, got {function!r}")
        if issubclass(type(function), _Decorated):
            raise TypeError(f"{function!r} is batched already")
        name = name_of(function)
        method = of_class or is_method(function)
        check_function(name, function, method=method)
        buffer: Buffer[Any] = Buffer(name, batch_size, timeout)
        kind: Any = BatchedFunction
        begin: Callable[[Callable[[list[Any]], Any], str, Buffer[Any]], Any] = ThreadBatcher
        if is_coroutine_function(function):
            from ._asyncio import LoopBatcher  # asyncio is imported when it is needed

            kind, begin = BatchedCoroutineFunction, LoopBatcher
        if not method:
            return kind(function, begin(function, name, buffer))
        options = {"batch_size": batch_size, "timeout": timeout}
        return BatchedMethod(function, kind, begin, options, of_class=of_class)

    return decorate


def _not_called(*_: object) -> None:
    """Stand where wrapt wants a wrapper function; `__call__` is overridden."""


def _annotations(self: _Decorated) -> dict[str, Any]:
    return annotations_of_one_item(self.__wrapped__)


for _kind in (BatchedFunction, BatchedCoroutineFunction, BatchedMethod):
    # In each class itself: Python makes an empty one where it is missing, as soon as somebody asks the class.
    setattr(_kind, "__annotations__", property(_annotations))  # noqa: B010 - a type checker forbids it
