"""What do type checkers see?

The overloads by which they know what a decorated function takes and returns, and what these are made of.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    import typing_extensions

    # The one import that goes up, and not at run time: a decorator and what it makes know each other's types.
    from ._decorator import BatchedCoroutineFunction as Async
    from ._decorator import BatchedFunction as Def
    from ._decorator import BatchedMethod as Method

    # What else there is beside the first column: further ones, and keywords. Mostly nothing.
    P = typing_extensions.ParamSpec("P", default=[])
else:
    P = ParamSpec("P")

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
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


class Unknown(Protocol):
    """A function that does not say what it takes: `Callable[..., X]`, and `functools.partial` to mypy."""

    def __call__(self, *columns: list[Any]) -> Any: ...


# What a function may return: two for `def`, two for `async def`. A mapping has a length and iterates too, but over its
# keys: so it comes first below. With a union of both in one overload mypy finds no `R`, and pyright takes the keys.
Mapped = Mapping[Any, R | Exception] | FutureLike[Mapping[Any, R | Exception]]
Entries = SizedIterable[R | Exception] | Iterator[R | Exception] | FutureLike[SizedIterable[R | Exception]]
AMapped = Coroutine[Any, Any, Mapping[Any, R | Exception]]
AEntries = Coroutine[Any, Any, SizedIterable[R | Exception] | Iterator[R | Exception]] | AsyncIterator[R | Exception]

# What it may take: up to three columns, and keywords `K`; of more columns nothing is checked. What begins with `Of` is
# for methods.
One = Callable[Concatenate[list[T], K], X]
Two = Callable[Concatenate[list[T], list[U], K], X]
Three = Callable[Concatenate[list[T], list[U], list[V], K], X]
Many = Callable[Concatenate[list[Any], list[Any], list[Any], list[Any], ...], Any]
OfOne = Callable[Concatenate[S, list[T], K], X]
OfTwo = Callable[Concatenate[S, list[T], list[U], K], X]
OfThree = Callable[Concatenate[S, list[T], list[U], list[V], K], X]
OfMany = Callable[Concatenate[S, list[Any], list[Any], list[Any], list[Any], ...], Any]

# A function of two columns is also one of a column and of a `K` that begins with a list. That the first one counts is
# what these overloads are for, and they need not be told of it.
# mypy: disable-error-code="overload-overlap"


class Decorator(Protocol):
    """What `batched(...)` returns. Its overloads find out what each caller passes and gets."""

    @overload
    def __call__(self, f: Unknown | Many | OfMany[Any], /) -> Any: ...
    # The most columns first, as `K` would take the second one's list for an item.
    @overload
    def __call__(self, f: Three[T, U, V, K, Mapped[R]], /) -> Def[T, R, Concatenate[U, V, K]]: ...
    @overload
    def __call__(self, f: Three[T, U, V, K, Entries[R]], /) -> Def[T, R, Concatenate[U, V, K]]: ...
    @overload
    def __call__(self, f: Three[T, U, V, K, AMapped[R]], /) -> Async[T, R, Concatenate[U, V, K]]: ...
    @overload
    def __call__(self, f: Three[T, U, V, K, AEntries[R]], /) -> Async[T, R, Concatenate[U, V, K]]: ...
    @overload
    def __call__(self, f: Two[T, U, K, Mapped[R]], /) -> Def[T, R, Concatenate[U, K]]: ...
    @overload
    def __call__(self, f: Two[T, U, K, Entries[R]], /) -> Def[T, R, Concatenate[U, K]]: ...
    @overload
    def __call__(self, f: Two[T, U, K, AMapped[R]], /) -> Async[T, R, Concatenate[U, K]]: ...
    @overload
    def __call__(self, f: Two[T, U, K, AEntries[R]], /) -> Async[T, R, Concatenate[U, K]]: ...
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
    def __call__(self, f: OfThree[S, T, U, V, K, Mapped[R]], /) -> Method[S, Def[T, R, Concatenate[U, V, K]]]: ...
    @overload
    def __call__(self, f: OfThree[S, T, U, V, K, Entries[R]], /) -> Method[S, Def[T, R, Concatenate[U, V, K]]]: ...
    @overload
    def __call__(self, f: OfThree[S, T, U, V, K, AMapped[R]], /) -> Method[S, Async[T, R, Concatenate[U, V, K]]]: ...
    @overload
    def __call__(self, f: OfThree[S, T, U, V, K, AEntries[R]], /) -> Method[S, Async[T, R, Concatenate[U, V, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, U, K, Mapped[R]], /) -> Method[S, Def[T, R, Concatenate[U, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, U, K, Entries[R]], /) -> Method[S, Def[T, R, Concatenate[U, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, U, K, AMapped[R]], /) -> Method[S, Async[T, R, Concatenate[U, K]]]: ...
    @overload
    def __call__(self, f: OfTwo[S, T, U, K, AEntries[R]], /) -> Method[S, Async[T, R, Concatenate[U, K]]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, Mapped[R]], /) -> Method[S, Def[T, R, K]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, Entries[R]], /) -> Method[S, Def[T, R, K]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, AMapped[R]], /) -> Method[S, Async[T, R, K]]: ...
    @overload
    def __call__(self, f: OfOne[S, T, K, AEntries[R]], /) -> Method[S, Async[T, R, K]]: ...
