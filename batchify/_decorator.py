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
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import Future
from dataclasses import replace
from functools import reduce, update_wrapper
from inspect import Signature
from types import CodeType, FunctionType, GenericAlias, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from ._options import Options, Takes
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
from ._threads import ThreadBatcher

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
F = TypeVar("F", bound="BatchedFunction[Any, Any, ...] | BatchedCoroutineFunction[Any, Any, ...]")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
X = TypeVar("X")
K = ParamSpec("K")


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

    import typing_extensions

    from ._asyncio import LoopBatcher

    # What else there is beside the first column: further ones, and keywords. Mostly nothing.
    P = typing_extensions.ParamSpec("P", default=[])
    # Not wrapt's class: it answers to any attribute, so a checker would let `f.sumbit` pass.
    _Wrapper = object
else:
    from wrapt import FunctionWrapper as _Wrapper

    P = ParamSpec("P")


class _Decorated(_Wrapper):
    """What `batched` makes: it looks like the function, but takes one item where that takes a list."""

    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        if not TYPE_CHECKING:
            super().__init__(function, _not_called)

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


class _Batched(Generic[T, R, P], _Decorated):
    """What both kinds of decorated functions have in common."""

    if not TYPE_CHECKING:
        # Before Python 3.13 a ParamSpec has no default, so Generic's own would insist on it.
        __class_getitem__ = classmethod(GenericAlias)

    def __init__(
        self,
        function: Callable[..., Any],
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
            self._self_list_function = _findable(function, function, "_self_list_function")

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
        return _restored, (self._self_list_function, *_place(self), self._self_options, False)

    @property
    def _self_options(self) -> Options:
        return self._self_batcher.options

    def _self_columns(
        self, items: Any, more: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, Mapping[str, Any], bool]:
        """Return the items of a map, its constants, and whether all that it reads has a length."""
        takes: Takes = self._self_batcher.takes
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

    _self_batcher: ThreadBatcher

    def __init__(
        self,
        function: Callable[..., Any],
        batcher: ThreadBatcher,
        owner: object = None,
        method: "BatchedMethod[Any, Any] | None" = None,
    ) -> None:
        super().__init__(function, batcher, owner, method)
        self._self_call: Callable[..., R] = batcher.call  # one step less for each call
        self._self_plain: bool = batcher.takes.plain
        self._self_aio: Any = None

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
            ClosedError: `close()` was called before, or the interpreter exits.
        """
        if self._self_plain and item is not _MISSING and not args and not kwargs:
            return self._self_call(item)
        return self._self_call(*self._self_batcher.takes.bind(*_given(item, args), **kwargs))

    def submit(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Pass an item without blocking.

        Args:
            item: One entry of the list that the function gets.
            *args: As in a call.
            **kwargs: As in a call.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; if it is in a batch already,
            only its answer is dropped.

        Raises:
            BufferFullError: `max_pending` items wait.
            ClosedError: `close()` was called before, or the interpreter exits.
        """
        batcher = self._self_batcher
        if batcher.takes.plain and item is not _MISSING and not args and not kwargs:
            return batcher.submit(item, self._self_bound_to)
        bound, constants = batcher.takes.bind(*_given(item, args), **kwargs)
        return batcher.submit(bound, self._self_bound_to, constants)

    @property
    def aio(self) -> Callable[Concatenate[T, P], Coroutine[Any, Any, R]]:
        """A coroutine function: awaits an item's result from any event loop, and does not block it.

        The function still runs in the flush thread, and items from event loops and from threads share batches.
        Cancelling takes the item out of the buffer; if it is in a batch already, only its answer is dropped. Raises
        what a call that blocks would raise.
        """
        if self._self_aio is None:
            batcher = self._self_batcher
            if batcher.aio is None:
                from ._asyncio import AioCall, awaits  # asyncio is imported when it is needed

                batcher.aio = awaits(f"{batcher.name}.aio", batcher.takes, AioCall)
            self._self_aio = MethodType(batcher.aio, (batcher, self._self_bound_to))
        aio: Callable[Concatenate[T, P], Coroutine[Any, Any, R]] = self._self_aio
        return aio

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
            ClosedError: `close()` was called before, or the interpreter exits.
        """
        found, constants, sized = self._self_columns(items, more, kwargs)
        return self._self_batcher.map(found, self._self_bound_to, constants, chunked=sized)

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


class BatchedCoroutineFunction(_Batched[T, R, P]):
    """A coroutine function of one item, answered by calls of one of a list. Made by `batched`.

    Coroutines in any number of event loops may call it. Items from one loop share batches, which run there.
    """

    _self_batcher: "LoopBatcher"

    def __init__(
        self,
        function: Callable[..., Any],
        batcher: "LoopBatcher",
        owner: object = None,
        method: "BatchedMethod[Any, Any] | None" = None,
    ) -> None:
        super().__init__(function, batcher, owner, method)
        self._self_call: Any = MethodType(batcher.aio, (batcher, owner))

    def __call__(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Await the item's result. Cancelling takes the item out of the buffer; see `submit`.

        Args:
            item: One entry of the list that the function gets.
            *args: One entry of each further list that it gets.
            **kwargs: Keyword-only arguments of the function. Only calls with the same ones share a batch.

        Returns:
            The result of this item.

        Raises:
            Exception: Whatever the function raised, as a copy of this caller's own.
            BatchError: The function raised what is no `Exception` (as when its task is cancelled), or gave this item no
                result.
            TypeError: The function returned what cannot be results.
            BufferFullError: `max_pending` items wait.
            ClosedError: `aclose()` was called before.
        """
        if item is not _MISSING and not args and not kwargs:
            return self._self_call(item)  # type: ignore[no-any-return]
        return self._self_call(*_given(item, args), **kwargs)  # type: ignore[no-any-return]

    @property
    def aio(self) -> Callable[Concatenate[T, P], Coroutine[Any, Any, R]]:
        """The same as a call, so that it need not matter which kind of function this is."""
        aio: Callable[Concatenate[T, P], Coroutine[Any, Any, R]] = self._self_call
        return aio

    def submit(self, item: T, /, *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[R]":
        """Pass an item to the running event loop. Under `asyncio.gather` several times cheaper than a task per item.

        Args:
            item: One entry of the list that the function gets.
            *args: As in a call.
            **kwargs: As in a call.

        Returns:
            A future of the item's result. Cancelling it takes the item out of the buffer; if it is in a batch already,
            only its answer is dropped. An error that nobody asks it for is not logged.

        Raises:
            RuntimeError: No event loop runs here.
            BufferFullError: `max_pending` items wait.
            ClosedError: `aclose()` was called before.
        """
        batcher = self._self_batcher
        if batcher.takes.plain and item is not _MISSING and not args and not kwargs:
            return batcher.submit(item, self._self_bound_to)
        bound, constants = batcher.takes.bind(*_given(item, args), **kwargs)
        return batcher.submit(bound, self._self_bound_to, constants)

    def map(
        self, items: Iterable[T] | AsyncIterable[T], /, *more: Iterable[Any], **kwargs: Any
    ) -> AsyncGenerator[R, None]:
        """Pass many items, from one task. Other callers' items may join the batches.

        What it reads does not count against `max_pending`.

        Args:
            items: Read at most two batches ahead of the results. An asynchronous iterable is read by a task of its own,
                so that no result waits for the next item to come.
            *more: For a function of several columns, the entries of the others; ends with the shortest, as `map` does.
                All of these must be synchronous then.
            **kwargs: As in a call.

        Returns:
            A lazy asynchronous iterator over the results, in order. The first error is raised where its result would
            stand and ends it; what was read by then and is in no batch yet is taken out. Closing it does the same. When
            the items end, what waits in this loop is made due, other callers' items too; with `group_by` and no timeout
            also when its next result is that of an item whose group nothing will fill.

        Raises:
            TypeError: `items` is not iterable.
            ClosedError: `aclose()` was called before.
        """
        found, constants, _ = self._self_columns(items, more, kwargs)
        return self._self_batcher.map(found, self._self_bound_to, constants)

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
        function: Callable[..., Any],
        kind: type[F],
        begin: "Callable[[Callable[..., Any], str, Options, Takes], ThreadBatcher | LoopBatcher]",
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
        self._self_list_function = _findable(function, function, "_self_list_function")
        # By id(), since instances may be equal or unhashable. An entry goes with its instance, before that id can be
        # given to another one; should it not, for Ctrl-C in forget(), the weak reference says whose it was.
        self._self_batchers: dict[int, tuple[weakref.ref[object], Any]] = {}

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
        function = _bound_weakly(self.__wrapped__, reference, self._self_takes)
        entry = (reference, self._self_begin(function, name, replace(self._self_options), self._self_takes))
        found = batchers.setdefault(key, entry)  # another thread may come first
        if found[0]() is not instance:
            batchers[key] = found = entry
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

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored, (self._self_list_function, *_place(self), self._self_options, self._self_of_class)

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


def _place(function: _Decorated) -> tuple[str | None, str]:
    """Return the module of a function, and its name there."""
    return getattr(function, "__module__", None), getattr(function, "__qualname__", "")


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


# What a function may return: two for `def`, two for `async def`. A mapping has a length and iterates too, but over its
# keys: so it comes first below.
Mapped = Mapping[Any, R | Exception] | FutureLike[Mapping[Any, R | Exception]]
Entries = SizedIterable[R | Exception] | Iterator[R | Exception] | FutureLike[SizedIterable[R | Exception]]
AMapped = Coroutine[Any, Any, Mapping[Any, R | Exception]]
AEntries = Coroutine[Any, Any, SizedIterable[R | Exception] | Iterator[R | Exception]] | AsyncIterator[R | Exception]

# What it may take: up to three columns, and keywords `K`; of more columns nothing is checked. What begins with `Of` is
# for methods.
One = Callable[Concatenate[list[T], K], X]
Two = Callable[Concatenate[list[T], list[T2], K], X]
Three = Callable[Concatenate[list[T], list[T2], list[T3], K], X]
Many = Callable[Concatenate[list[Any], list[Any], list[Any], list[Any], ...], Any]
OfOne = Callable[Concatenate[S, list[T], K], X]
OfTwo = Callable[Concatenate[S, list[T], list[T2], K], X]
OfThree = Callable[Concatenate[S, list[T], list[T2], list[T3], K], X]
OfMany = Callable[Concatenate[S, list[Any], list[Any], list[Any], list[Any], ...], Any]


class Unknown(Protocol):
    """It does not say what it takes: `Callable[..., X]`, and `functools.partial` to mypy."""

    def __call__(self, *columns: list[Any]) -> Any: ...


Def = BatchedFunction
Async = BatchedCoroutineFunction
Method = BatchedMethod

# A function of two columns is also one of a column and of a `K` that begins with a list. That the first one counts is
# what these overloads are for, and they need not be told of it.
# mypy: disable-error-code="overload-overlap"


class Decorator(Protocol):
    """What `batched(...)` returns. Its overloads find out what each caller passes and gets."""

    @overload
    def __call__(self, f: Unknown | Many | OfMany[Any], /) -> Any: ...
    # The most columns first, as `K` would take the second one's list for an item.
    @overload
    def __call__(self, f: Three[T, T2, T3, K, Mapped[R]], /) -> Def[T, R, Concatenate[T2, T3, K]]: ...
    @overload
    def __call__(self, f: Three[T, T2, T3, K, Entries[R]], /) -> Def[T, R, Concatenate[T2, T3, K]]: ...
    @overload
    def __call__(self, f: Three[T, T2, T3, K, AMapped[R]], /) -> Async[T, R, Concatenate[T2, T3, K]]: ...
    @overload
    def __call__(self, f: Three[T, T2, T3, K, AEntries[R]], /) -> Async[T, R, Concatenate[T2, T3, K]]: ...
    @overload
    def __call__(self, f: Two[T, T2, K, Mapped[R]], /) -> Def[T, R, Concatenate[T2, K]]: ...
    @overload
    def __call__(self, f: Two[T, T2, K, Entries[R]], /) -> Def[T, R, Concatenate[T2, K]]: ...
    @overload
    def __call__(self, f: Two[T, T2, K, AMapped[R]], /) -> Async[T, R, Concatenate[T2, K]]: ...
    @overload
    def __call__(self, f: Two[T, T2, K, AEntries[R]], /) -> Async[T, R, Concatenate[T2, K]]: ...
    @overload
    def __call__(self, f: One[T, K, Mapped[R]], /) -> Def[T, R, K]: ...
    @overload
    def __call__(self, f: One[T, K, Entries[R]], /) -> Def[T, R, K]: ...
    @overload
    def __call__(self, f: One[T, K, AMapped[R]], /) -> Async[T, R, K]: ...
    @overload
    def __call__(self, f: One[T, K, AEntries[R]], /) -> Async[T, R, K]: ...
    # The same for methods.
    @overload
    def __call__(self, f: OfThree[S, T, T2, T3, K, Mapped[R]], /) -> Method[S, Def[T, R, Concatenate[T2, T3, K]]]: ...
    @overload
    def __call__(self, f: OfThree[S, T, T2, T3, K, Entries[R]], /) -> Method[S, Def[T, R, Concatenate[T2, T3, K]]]: ...
    @overload
    def __call__(
        self, f: OfThree[S, T, T2, T3, K, AMapped[R]], /
    ) -> Method[S, Async[T, R, Concatenate[T2, T3, K]]]: ...
    @overload
    def __call__(
        self, f: OfThree[S, T, T2, T3, K, AEntries[R]], /
    ) -> Method[S, Async[T, R, Concatenate[T2, T3, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, T2, K, Mapped[R]], /) -> Method[S, Def[T, R, Concatenate[T2, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, T2, K, Entries[R]], /) -> Method[S, Def[T, R, Concatenate[T2, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, T2, K, AMapped[R]], /) -> Method[S, Async[T, R, Concatenate[T2, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, T2, K, AEntries[R]], /) -> Method[S, Async[T, R, Concatenate[T2, K]]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, Mapped[R]], /) -> Method[S, Def[T, R, K]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, Entries[R]], /) -> Method[S, Def[T, R, K]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, AMapped[R]], /) -> Method[S, Async[T, R, K]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, AEntries[R]], /) -> Method[S, Async[T, R, K]]: ...


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
    thread of its own, in an empty context (`contextvars`), and, but for `concurrency`, never twice at the same time;
    only a call made from inside it runs at once, where it is made, as it would wait for itself. The function gets
    a list of items that it may keep or change, and returns one result per item, in the same order: as a list or
    anything else that has a length and iterates in order; as a mapping from item to result; as an iterator, where each
    caller goes on as soon as its result is yielded; or as a thread-safe future of one of these, from an executor. An
    `Exception` among the results is raised at its own caller. If the function raises, each caller of that batch gets
    a copy of the error.

    Further parameters by position are further lists, with one entry per item each: `def f(xs, ys)` is called `f(x, y)`,
    the item is the tuple of both, and a default is that of one item; type checkers check up to three. Keyword-only
    parameters are the same for a whole batch: only calls with equal ones, which must be hashable, share it.

    An `async def` function, which may be an asynchronous generator, becomes a coroutine function of one item. It runs
    on the event loop of its callers, each batch in a task with an empty context, without threads; calls made on one
    loop share batches, and all limits are those of one loop.

    A batch is taken only when the function is free to run; until then items go on joining. So with a timeout of 0
    nobody waits for company, and batches form by themselves while the function is busy. Source: a batch is due by the
    rule of TensorFlow's `shared_batch_scheduler.h`; that a function of a list is called with one item is from
    dataloader.

    Args:
        batch_size: Most items in one call of the function, at least 1.
        timeout: Longest time in seconds that the oldest item waits for others; 0 means no wait, None that only a full
            batch, `flush()` or `close()` ends it. Bounds neither the function's own run time nor a caller's total wait.
        weight: A function that is called with the item, or one entry of each column, and returns what it weighs
            (tokens, bytes): a number of at least 0.
        max_weight: Most that the items of a batch may weigh together. An item that does not fit opens the next batch,
            and one that is heavier than this runs alone.
        group_by: A function that is called like `weight`, and returns something hashable. Only items for which that is
            equal share a batch. Of the batches that are due, the one whose oldest item has waited longest goes first.
        dedupe: Whether equal items in one batch are given to the function once, and all their callers get the same
            result, the very object; `batch_size` bounds the callers. Items must be hashable. Nothing is remembered from
            batch to batch.
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
    begin: Any = ThreadBatcher
    if is_coroutine_function(function):
        from ._asyncio import LoopBatcher  # asyncio is imported when it is needed

        kind, begin = BatchedCoroutineFunction, LoopBatcher
    if method:
        return BatchedMethod(function, kind, begin, options, takes, of_class=of_class)
    return kind(function, begin(_of_items(function, takes), name, options, takes))


def _not_called(*_: object) -> None:
    """Stand where wrapt wants a wrapper function; `__call__` is overridden."""


# Where there is no item, let Python complain of the user's function, not of ours; or its columns have defaults.
_MISSING: Any = object()


def _given(item: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args if item is _MISSING else (item, *args)


for _entry in (
    BatchedFunction.__call__,
    BatchedFunction.submit,
    BatchedCoroutineFunction.__call__,
    BatchedCoroutineFunction.submit,
):
    _entry.__defaults__ = (_MISSING,)


def _annotations(self: _Decorated) -> dict[str, Any]:
    return annotations_of_one_item(self.__wrapped__, method=self._self_takes_instance)


for _kind in (BatchedFunction, BatchedCoroutineFunction, BatchedMethod):
    # In each class itself: Python makes an empty one where it is missing, as soon as somebody asks the class.
    setattr(_kind, "__annotations__", property(_annotations))  # noqa: B010 - a type checker forbids it
