"""What can go wrong, and how one exception reaches many callers."""

from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, cast

# At a caller these would mean that its loop is at its end, or that the caller was cancelled.
_MISLEADING = (StopIteration, StopAsyncIteration, CancelledError)


class BatchError(Exception):
    """Raised when a batch gave no usable answer.

    Raised itself, with the original as `__cause__`, when the function raised what is no `Exception` (`SystemExit`,
    `KeyboardInterrupt`), or `StopIteration`, `StopAsyncIteration` or `CancelledError`. At the caller these would mean
    something else.
    """


class ResultCountError(BatchError):
    """Raised when the function returned more or fewer results than it was given items.

    What a generator yields too much is only logged.
    """


class MissingResultError(BatchError, LookupError):
    """Raised when the function returned a mapping without a value for the caller's item, `error.item`.

    With several columns the item is the tuple of its entries.
    """

    def __init__(self, message: str = "", item: Any = None) -> None:
        super().__init__(message)
        self.item = item


class WaitsForItselfError(BatchError):
    """Raised inside a function when it waits for an answer that cannot come before its own batch has ended.

    It is about an item of this very batch, or of a batch that waits for this one. On threads the wait raises it,
    whatever its time limit; `concurrent.futures.wait()` and `as_completed()` do so only for a future that was submitted
    inside a function. On event loops an awaited future that was submitted inside gets it, and so does everybody who
    awaits that future. A finalizer that runs on the flush thread while that takes a batch, and waits for a future of
    the function, gets it too: no turn can be lent then.
    """


class ClosedError(RuntimeError):
    """Raised for an item that is passed after closing or at exit, or that `cancel_pending` drops."""


class BufferFullError(RuntimeError):
    """Raised when an item is passed while `max_pending` items wait. Items of `map()` do not count."""


def own_copy(original: BaseException, name: str) -> Exception:
    """Return an exception for one caller alone: of the same type where that is safe, its cause `original`, if raised.

    One object raised in many threads collects a traceback entry for each of them, and its `__context__` tells of
    strangers. An original that was never raised has nothing to tell as a cause. Never raises: where a type forbids all
    copying, its error must still arrive, and is the original itself.
    """
    try:
        if not issubclass(type(original), Exception) or issubclass(type(original), _MISLEADING):
            copy: Exception = BatchError(f"{name}() raised {type(original).__name__}")
            cause: BaseException | None = original
        else:
            copy = _copy(cast("Exception", original))
            cause = original if traceback_of(original) is not None else original.__cause__
        BaseException.__dict__["__cause__"].__set__(copy, cause)
    except BaseException:  # noqa: BLE001 - see above
        if issubclass(type(original), Exception):
            return cast("Exception", original)
        return BatchError(f"{name}() raised an exception")
    return copy


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return the traceback, whatever the type of the error makes of that attribute."""
    return BaseException.__dict__["__traceback__"].__get__(error)  # type: ignore[no-any-return]


def _copy(original: Exception) -> Exception:
    # copy.copy() would call the user's __init__ with `args`, which is often not what it takes: the copy of an error
    # made by `def __init__(self, code): super().__init__(f"code {code}")` would read "code code 5". So only the part
    # that is built in is made anew (it keeps some fields in C), and the attributes are carried over.
    cls = type(original)
    builtin: type[Exception] = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    _, args, *state = cast("tuple[Any, ...]", builtin.__reduce__(original))
    copy = builtin.__new__(cls, *args)
    builtin.__init__(copy, *args)
    attributes = dict(state[0] or {}) if state else {}
    own = object.__getstate__(original)
    if isinstance(own, tuple):  # (attributes, slots) where the class has __slots__
        attributes.update(own[1])
    for key, value in attributes.items():
        # Past the class's own __setattr__, which may refuse. A list is copied since add_note() appends to one.
        BaseException.__setattr__(copy, key, value.copy() if type(value) is list else value)
    return copy
