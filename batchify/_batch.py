"""Who gets which result?

The rule of the list function: n items in, n results out, in the same order. Here the function is called, what it
returned is spread over the calls, and what it raised reaches every one of them. Nothing here knows of time, locks or
threads.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from types import CoroutineType
from typing import Any

from ._errors import MissingResultError, ResultCountError, own_copy

log = logging.getLogger("batchify")

# These have a length or an order, but it is not that of the items.
_NOT_RESULTS = (str, bytes, bytearray, memoryview, set, frozenset)
_MISSING = object()


class Call:
    """One item, and the place for its answer.

    `deliver` tells the caller that `result` is there, or `error` if that is not None. It is called once, after the
    figures of `stats` are right.
    """

    __slots__ = ("arrival", "deliver", "error", "item", "result")

    arrival: float
    result: Any
    error: Exception | None

    def __init__(self, item: Any, deliver: Callable[[], object]) -> None:
        self.item = item
        self.deliver = deliver

    def outcome(self) -> Any:
        """Return the result or raise the error, once delivered."""
        error = self.error
        if error is None:
            return self.result
        # The traceback will know this frame: without this, a cycle would keep error, item and all alive.
        self.error = None
        try:
            raise error
        finally:
            del error, self


class Batch:
    """The calls that one call of the function answers: each exactly once, whatever the function does.

    A subclass says what that means on threads and on an event loop. If the function returned a future, all of it may
    happen after `run()` returned, on another thread.
    """

    __slots__ = ("_context", "_open", "name")

    def __init__(self, name: str, calls: Sequence[Call]) -> None:
        self.name = name
        # Not the context of whoever called first: its variables (a user, a transaction) are not those of the others.
        self._context = Context()
        # Emptied by whoever settles the batch. pop() is atomic, so a future that calls back twice finds nothing left.
        self._open = [calls]

    def answer(self, calls: Sequence[Call], failed: int, *, done: bool) -> None:
        """Deliver calls that have their result, or as `failed` of them, their error. `done`: the function has ended."""
        raise NotImplementedError

    def finish(self) -> None:
        """Make room for the next batch. Comes once, after the last answer."""
        raise NotImplementedError

    def run(self, function: Callable[[list[Any]], Any]) -> None:
        """Call the function with a list of its own, and settle every call by what it does."""
        try:
            value = self._context.run(function, [call.item for call in self._open[0]])
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the thread, and leave all behind it waiting
            self.fail(_without_our_frame(error))
        else:
            self.settle(value)

    def settle(self, value: Any) -> None:
        """Spread over the calls what the function returned."""
        try:
            if type(value) is not list and type(value) is not tuple:
                if callable(getattr(value, "add_done_callback", None)) and not _is_asyncio_future(value):
                    value.add_done_callback(self.settle_future)
                    return
                if isinstance(value, Iterator):
                    self._stream(value)
                    return
            results = self._results(value, self._open[0])
        except BaseException as error:  # noqa: BLE001 - raised by a strange object; its callers must hear of it all the same
            self.fail(_without_our_frame(error))
            return
        if isinstance(results, Exception):
            self.fail(results)
            return
        failed = 0
        calls = self._open.pop()
        for call, result in zip(calls, results, strict=True):
            failed += self._store(call, result)
        self.answer(calls, failed, done=True)
        self.finish()

    def settle_future(self, future: Any) -> None:
        """Spread what a future holds that is done. Called on a thread of whoever made the future."""
        try:
            value = future.result()
        except BaseException as error:  # noqa: BLE001 - a cancelled future raises, a broken one may raise anything
            self.fail(_without_our_frame(error))
        else:
            self.settle(value)

    def fail(self, error: BaseException) -> None:
        """Answer every call that has no answer yet with its own copy of the error."""
        if not self._open:
            return
        calls = self._open.pop()
        for call in calls:
            call.error = own_copy(error, self.name)
        self.answer(calls, len(calls), done=True)
        self.finish()

    def _stream(self, results: Iterator[Any]) -> None:
        """Answer each call as soon as its result is yielded."""
        calls = self._open.pop()
        for position, call in enumerate(calls):
            try:
                result = self._context.run(next, results)
            except BaseException as error:  # noqa: BLE001 - as in run()
                self._open.append(calls[position:])
                ended = isinstance(error, StopIteration)
                self.fail(self._wrong_count(position, len(calls)) if ended else _without_our_frame(error))
                return
            failed = self._store(call, result)
            self.answer((call,), failed, done=False)
        try:
            # What stands behind its last `yield` must run too.
            if self._context.run(next, results, _MISSING) is not _MISSING:
                log.error("%s", self._wrong_count(f"more than {len(calls)}", len(calls)))
        except BaseException:  # everybody has an answer, so nobody is left to raise it at
            log.exception("%s() raised after its last result", self.name)
        self.answer((), 0, done=True)
        self.finish()

    def _store(self, call: Call, result: Any) -> bool:
        """Put one result in its place. Returns whether its caller fails by it."""
        # Not isinstance(), which asks what is no exception for its __class__: that may be a lie, or raise.
        if issubclass(type(result), Exception):
            call.error = own_copy(result, self.name)
            return True
        call.result = result
        call.error = None
        return False

    def _results(self, value: Any, calls: Sequence[Call]) -> Sequence[Any] | Exception:
        """Return one result per call, iterating `value` once; or the error that says which rule it breaks."""
        if type(value) is list or type(value) is tuple:
            return value if len(value) == len(calls) else self._wrong_count(len(value), len(calls))
        if isinstance(value, Mapping):
            return [self._look_up(value, call.item) for call in calls]
        # A table's entries are its columns, and a square one would pass the check of the length.
        if isinstance(value, _NOT_RESULTS) or not hasattr(value, "__len__") or hasattr(value, "columns"):
            if isinstance(value, CoroutineType):
                value.close()  # else it would warn that nobody awaited it
            return TypeError(
                f"{self.name}() returned {type(value).__name__}; it must return one result per item, in the same "
                "order: a list or other sequence, a mapping from item to result, an iterator, or a thread-safe future "
                "of one of these"
            )
        if len(value) != len(calls):
            return self._wrong_count(len(value), len(calls))
        results = list(value)
        return results if len(results) == len(calls) else self._wrong_count(len(results), len(calls))

    def _look_up(self, results: Mapping[Any, Any], item: Any) -> Any:
        try:
            result = results.get(item, _MISSING)
        except Exception as error:  # noqa: BLE001 - an item that cannot be hashed or compared is its caller's matter alone
            return _without_our_frame(error)
        if result is not _MISSING:
            return result
        return MissingResultError(f"{self.name}() returned a mapping without a value for this item")

    def _wrong_count(self, results: int | str, items: int) -> ResultCountError:
        return ResultCountError(
            f"{self.name}() returned {results} result{'' if results == 1 else 's'} for {items} "
            f"item{'' if items == 1 else 's'}; it must return one result per item, in the same order"
        )


def _is_asyncio_future(value: object) -> bool:
    # Its add_done_callback() may be called on its loop's thread only. Asked without importing asyncio, by the mark
    # that asyncio.isfuture() looks for.
    return hasattr(type(value), "_asyncio_future_blocking")


def _without_our_frame(error: BaseException) -> BaseException:
    """Take the frame that caught it out of the traceback: it knows the calls, which know the error, a cycle."""
    traceback = error.__traceback__
    return error.with_traceback(traceback.tb_next if traceback else None)
