"""Who gets which result?

The rule of the list function: n items in, n results out, in the same order. Here the function is called, what it
returned is spread over the calls, and what it raised reaches every one of them. Nothing here knows when, or on which
thread.
"""

import logging
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from itertools import islice
from types import CoroutineType, MappingProxyType
from typing import Any, Protocol

from ._errors import MissingResultError, ResultCountError, own_copy, traceback_of
from ._options import Options
from ._stats import Reason, report_to

# These have a length or an order, but it is not that of the items.
_NOT_RESULTS = (str, bytes, bytearray, memoryview, set, frozenset)
_MISSING = object()
_reporting: ContextVar[bool] = ContextVar("batchify report", default=False)  # whether an on_batch runs here
_NO_TWINS: "dict[Call, list[Call]]" = {}  # never changed
NO_CONSTANTS: Mapping[str, Any] = MappingProxyType({})


class Call:
    """One item, and the place for its answer.

    Whoever makes one sets `item`, and what `deliver_all()` needs: an __init__() would be one step more for each item.
    `value`, which is the result, and `error` are unset until there is an answer; then `error` is None or is raised.
    `deliver` tells the caller so, after the figures of `stats` are right. Calls of one batch that have the same `home`
    are delivered together.
    """

    # group and weight are the buffer's, and set only where an option asks for them; so is context.
    __slots__ = ("arrival", "context", "deliver", "error", "group", "item", "value", "weight")

    home: Any = "threads"
    limited = True  # by max_pending
    arrival: float
    group: Any
    weight: float
    context: Context
    item: Any
    deliver: Callable[[], object]
    value: Any
    error: Exception | None

    @staticmethod
    def deliver_all(calls: Sequence[Any]) -> None:
        """Deliver calls of one home."""
        for call in calls:
            call.deliver()

    def outcome(self) -> Any:
        """Return the result or raise the error, once delivered."""
        error = self.error
        if error is None:
            return self.value
        # The traceback will know this frame: without this, a cycle would keep error, item and all alive.
        self.error = None
        try:
            raise error
        finally:
            del error, self


class MapCall(Call):
    """A call of a map, which sleeps until any of its calls is answered. Its home is what wakes the map."""

    __slots__ = ("home",)

    limited = False  # a map bounds itself: it reads no more than two batches ahead

    def __init__(self, item: Any, wake: Callable[[], object]) -> None:
        self.item = item
        self.home = wake

    @staticmethod
    def deliver_all(calls: Sequence["MapCall"]) -> None:
        calls[0].home()


class Ahead:
    """What a map has read and not yielded yet."""

    def __init__(
        self, items: Iterator[Any], wake: Callable[[], object], ask: Callable[[Call], object] | None = None
    ) -> None:
        self.calls: deque[MapCall] = deque()
        self.more = True
        self._items = items
        self._wake = wake
        self._ask = ask
        self._error: Exception | None = None

    def read(self, size: int) -> list[MapCall]:
        """Read so many items, or fewer if there are no `more`. Returns the calls that are to wait."""
        calls = []
        try:
            for item in islice(self._items, min(size, sys.maxsize)):
                calls.append(MapCall(item, self._wake))  # noqa: PERF401 - what was read must not be lost
        except Exception as error:  # noqa: BLE001 - whatever they raise; see raise_error()
            self._error = error
        self.more = len(calls) == size
        self.calls.extend(calls)
        ask = self._ask
        return calls if ask is None else [call for call in calls if is_sound(call, ask)]

    def raise_error(self) -> None:
        """Raise what the items raised, behind the results of those before."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback knows this frame


def is_sound(call: Call, ask: Callable[[Call], object]) -> bool:
    """Ask what options want to know of a call of a map; where that fails, this is the answer."""
    try:
        ask(call)
    except Exception as error:  # noqa: BLE001 - whatever a function of the user's raises
        call.error = _without_our_frame(error)  # type: ignore[assignment]
        return False
    return True


class Batcher(Protocol):
    """What a batch must know of where it comes from."""

    name: str
    options: Options
    asks: bool  # whether its calls have a group


class Batch:
    """The calls that one call of the function answers: each exactly once, whatever the function does.

    `run()` calls the function; `settle()` takes what it returned, `fail()` what it raised; both end in `_conclude()`,
    which puts each result in its place and calls `answer()` and then `finish()`. What these do is a subclass's
    matter, so that this file needs no thread. If the function returned a future, all but `run()` may happen later, on
    another thread. With `isolate`, a batch that failed ends without an answer, and its halves begin `again()`.
    """

    # What the function may return, for messages.
    accepts = (
        "a list or other sequence, a mapping from item to result, an iterator, or a thread-safe future of one of these"
    )

    __slots__ = (
        "_began",
        "_constants",
        "_enter",
        "_options",
        "_size",
        "_twins",
        "_unanswered",
        "error",
        "name",
        "tell",
    )

    def __init__(
        self, of: Batcher, calls: Sequence[Any], enter: Callable[..., Any], reason: Reason, now: float
    ) -> None:
        group = calls[0].group if of.asks else None
        self.name = of.name
        self.error: BaseException | None = None  # of the whole batch
        self._began = now
        hook = of.options.on_batch
        # What tells it of this batch; None if there is none.
        self.tell: Any = None if hook is None else report_to(hook, of.name, reason, calls, now)
        self._size = len(calls)
        self._options = of.options
        self._constants = NO_CONSTANTS if group is None else group.constants  # keyword arguments of the function
        # Calls the function, or next(), in the context of this batch: an empty one, and not that of whoever called
        # first, whose variables (a user, a transaction) are not those of the others.
        self._enter = enter
        # A list of one list: who pops the calls is the one to answer them. pop() is atomic, so a future that calls back
        # twice, on two threads, is heard once.
        self._unanswered = [calls]
        # With `dedupe`: by each call whose item is given to the function, those with an equal one, which are not in
        # _unanswered.
        self._twins = _NO_TWINS

    def answer(self, calls: Sequence[Call], failed: int, *, done: bool) -> None:
        """Deliver these calls; `failed` of them hold an error. `done`: no answer follows, so the batch has ended."""
        raise NotImplementedError

    def again(self, parts: Sequence[Sequence[Call]]) -> None:
        """See to it that each of these is run as a batch of its own, before all that waits."""
        raise NotImplementedError

    def finish(self) -> None:
        """Make room for the next batch. Comes once, after the last answer."""
        raise NotImplementedError

    def expect(self, future: Any) -> None:
        """See to it that `settle_future()` is called when the future is done."""
        future.add_done_callback(self.settle_future)

    def deliver(self, calls: Sequence[Any]) -> None:
        """Tell the callers that there is an answer."""
        if len({call.home for call in calls}) == 1:
            calls[0].deliver_all(calls)
            return
        homes: dict[Any, list[Any]] = {}
        for call in calls:
            homes.setdefault(call.home, []).append(call)
        # Futures last, since their callbacks may take long.
        futures = homes.pop("futures", ())
        for group in (*homes.values(), futures):
            if group:
                group[0].deliver_all(group)

    def report(self, now: float, pending: int, in_flight: int) -> None:
        """Tell on_batch of this batch, whatever it makes of that."""
        # Not in the midst of another report, if that calls a batched function, or a finalizer does: it may hold a lock
        # that it would want once more, and there would be no end to its calls.
        if _reporting.get():
            return
        token = _reporting.set(True)
        try:
            self.tell(
                batch_size=self._options.batch_size,
                duration=now - self._began,
                pending=pending,
                in_flight=in_flight,
                error=self.error,
            )
        except BaseException:  # noqa: BLE001 - the callers of the batch must have their answers all the same
            complain("on_batch of %s() raised", self.name)
        finally:
            _reporting.reset(token)

    def run(self, function: Callable[[list[Any]], Any]) -> None:
        """Call the function with a list of its own, and settle every call by what it does."""
        try:
            value = self._enter(function, self._items(), **self._constants)
            if type(value) is not list and _is_future(value):
                self.expect(value)
                return
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the thread, and leave all behind it waiting
            self.fail(error)
        else:
            self.settle(value)

    def _items(self) -> list[Any]:
        """Return what the function is given."""
        calls = self._unanswered[0]
        if self._options.dedupe:
            firsts: dict[Any, Call] = {}
            lone: list[Call] = []  # in order, those that are given
            twins: dict[Call, list[Call]] = {}
            for call in calls:
                try:
                    first = firsts.setdefault(call.item, call)
                except Exception:  # noqa: BLE001 - two items that cannot be compared are two items
                    first = call
                if first is call:
                    lone.append(call)
                else:
                    twins.setdefault(first, []).append(call)
            self._unanswered[0], self._twins = lone, twins
            self._size = len(lone)
            calls = lone
        return [call.item for call in calls]

    def _with_twins(self, calls: Iterable[Call]) -> list[Call]:
        return [each for call in calls for each in (call, *self._twins.get(call, ()))]

    def settle_future(self, future: Any) -> None:
        """Spread over the calls what a future holds that is done."""
        try:
            value = future.result()
        except BaseException as error:  # noqa: BLE001 - as in run(); a cancelled future raises too
            self.fail(error)
        else:
            self.settle(value)

    async def run_async(self, function: Callable[[list[Any]], Any]) -> None:
        """As run(), for a function that is awaited or is an async generator; in a task of the batch's own."""
        try:
            value = function(self._items(), **self._constants)
            if not hasattr(type(value), "__aiter__"):
                value = await value
        except BaseException as error:  # noqa: BLE001 - as in run(); and a cancelled task must not leave them waiting
            self.fail(error)
        else:
            if hasattr(type(value), "__aiter__"):
                await self._stream_async(value)
            else:
                self.settle(value)

    def settle(self, value: Any) -> None:
        """Spread over the calls what the function returned."""
        try:
            if type(value) is not list and isinstance(value, Iterator):
                self._stream(value)
                return
            results = self._results(value, self._unanswered[0])
        except BaseException as error:  # noqa: BLE001 - by a strange object; the callers must hear of it all the same
            self.fail(error)
        else:
            self._conclude(results)

    def fail(self, error: BaseException) -> None:
        """Answer every call that has no answer yet with its own copy of the error, or run it again in a half."""
        error = self.error = _without_our_frame(error)
        for calls in self._unanswered:
            if len(calls) > 1 and self._options.isolate and issubclass(type(error), Exception):
                self._halve()
            else:
                self._conclude([error] * len(calls))

    def _halve(self) -> None:
        try:
            calls = list(self._unanswered.pop())  # of a deque there are no slices
        except IndexError:  # as in _conclude()
            return
        try:
            middle = len(calls) // 2
            self.again([self._with_twins(half) for half in (calls[:middle], calls[middle:])])
        except BaseException as error:
            self._disturbed(calls, error, counted=False, done=True)
            self.finish()
            raise
        try:
            self.answer((), 0, done=True)
        finally:
            self.error = None
            self.finish()

    def _conclude(self, results: Sequence[Any]) -> None:
        """Answer all calls that have no answer yet."""
        failed, counted = 0, False
        try:
            calls = self._unanswered.pop()
        except IndexError:  # a future called back twice, and the other one was faster
            return
        try:
            if self._twins:
                results = [each for call, each in zip(calls, results, strict=True) for _ in self._with_twins((call,))]
                calls = self._with_twins(calls)
            # Not isinstance(), which asks what is no exception for its __class__: that may be a lie, or raise.
            for kind in set(map(type, results)):
                if issubclass(kind, BaseException):
                    for call, result in zip(calls, results, strict=True):
                        failed += self._store(call, result)
                    break
            else:
                for call, result in zip(calls, results, strict=True):
                    call.value = result
                    call.error = None
            counted = True
            self.answer(calls, failed, done=True)
        except BaseException as error:
            self._disturbed(calls, error, counted=counted, done=True)
            raise
        finally:
            self.error = None  # it knows this batch, by the frames that called the function
            self.finish()

    def _stream(self, results: Iterator[Any]) -> None:
        """Answer each call as soon as its result is yielded."""
        calls = self._unanswered[0] = deque(self._unanswered[0])
        try:
            # Asked once more than there are calls, since what stands behind its last `yield` must run too.
            while (result := self._enter(next, results, _MISSING)) is not _MISSING:
                if not self._yielded(calls, result):
                    break
                del result  # it may take long until the next one comes
        except BaseException as error:  # noqa: BLE001 - as in run()
            self._stream_failed(calls, error)
        else:
            self._stream_ended(calls)

    async def _stream_async(self, results: AsyncIterator[Any]) -> None:
        """As _stream()."""
        calls = self._unanswered[0] = deque(self._unanswered[0])
        try:
            async for result in results:
                if not self._yielded(calls, result):
                    break  # the loop closes a generator that is dropped
                del result
        except Exception as error:  # noqa: BLE001 - as in run()
            self._stream_failed(calls, error)
        except BaseException as error:  # noqa: BLE001 - it was cancelled, or the loop closed
            self.fail(error)
        else:
            self._stream_ended(calls)

    def _yielded(self, calls: "deque[Call]", result: Any) -> bool:
        """Answer the next call; False if there is none left."""
        if not calls:
            complain("%s() yielded more results than the %d items it was given", self.name, self._size)
            return False
        counted = False
        call = calls.popleft()
        try:
            same = self._with_twins((call,))
            failed = sum(self._store(each, result) for each in same)
            counted = True
            self.answer(same, failed, done=False)
        except BaseException as error:
            self._disturbed((call,), error, counted=counted, done=False)
            raise
        return True

    def _stream_failed(self, calls: "deque[Call]", error: BaseException) -> None:
        if not calls:  # so nobody is left to raise it at
            complain("%s() raised after its last result", self.name)
        self.fail(error)

    def _stream_ended(self, calls: "deque[Call]") -> None:
        if calls:
            self.error = self._wrong_count(self._size - len(calls))
        self._conclude([self.error] * len(calls))

    def _store(self, call: Call, result: Any) -> bool:
        """Put one result in its place; an exception as a copy of the caller's own. Returns whether it was one."""
        if issubclass(type(result), BaseException):
            call.error = own_copy(result, self.name)
            return True
        call.value = result
        call.error = None
        return False

    def _disturbed(self, calls: Sequence[Call], error: BaseException, *, counted: bool, done: bool) -> None:
        """Answer calls that nobody else knows, after no memory, a recursion limit, or an exception from elsewhere."""
        calls = list(dict.fromkeys(self._with_twins(calls)))
        for call in calls:
            if not hasattr(call, "error"):
                self._store(call, error)
        if not counted:
            self.answer(calls, sum(call.error is not None for call in calls), done=done)
            return
        for call in calls:
            with suppress(RuntimeError):  # it was told before
                call.deliver_all((call,))

    def _results(self, value: Any, calls: Sequence[Call]) -> Sequence[Any]:
        """Return one result per call, or where a rule is broken one error per call. Iterates `value` once."""
        if type(value) is list:
            results = value.copy()  # the function may have kept it and change it meanwhile
            return results if len(results) == len(calls) else self._all(self._wrong_count(len(results)))
        if isinstance(value, Mapping):
            return [self._look_up(value, call.item) for call in calls]
        # A table's entries are its columns, and a square one would pass the check of the length.
        if isinstance(value, _NOT_RESULTS) or not hasattr(value, "__len__") or hasattr(value, "columns"):
            if isinstance(value, CoroutineType):
                value.close()  # else it would warn that nobody awaited it
            what = "None" if value is None else type(value).__name__
            hint = "; await it first" if hasattr(type(value), "__await__") else ""
            return self._all(
                TypeError(
                    f"{self.name}() returned {what}; it must return one result per item, in the same order: "
                    f"{self.accepts}{hint}"
                )
            )
        count = len(value)
        if count == len(calls):
            # Bounded, since len() may lie.
            results = list(islice(value, count + 1))
            if len(results) == count:
                return results
            count = len(results)
        return self._all(self._wrong_count(count))

    def _all(self, error: Exception) -> list[Exception]:
        self.error = error
        return [error] * self._size

    def _look_up(self, results: Mapping[Any, Any], item: Any) -> Any:
        try:
            result = results.get(item, _MISSING)
        except BaseException as error:  # noqa: BLE001 - that it cannot be hashed or compared is this item's matter alone
            return _without_our_frame(error)
        if result is not _MISSING:
            return result
        return MissingResultError(f"{self.name}() returned a mapping without a value for this item")

    def _wrong_count(self, results: int) -> ResultCountError:
        return ResultCountError(
            f"{self.name}() returned {results} result{'' if results == 1 else 's'} for {self._size} "
            f"item{'' if self._size == 1 else 's'}; it must return one result per item, in the same order"
        )


def _without_our_frame(error: BaseException) -> BaseException:
    """Take the frame that caught it out of the traceback: it knows the calls, and they will know the error, a cycle."""
    traceback = traceback_of(error)
    return BaseException.with_traceback(error, traceback.tb_next if traceback else None)


def _is_future(value: object) -> bool:
    # Asked of the type: a proxy's or a mock's instance says yes to any name. Not one of asyncio, whose
    # add_done_callback() is for its loop's thread only; known, without importing asyncio, by what asyncio.isfuture()
    # looks for.
    kind = type(value)
    return (
        hasattr(kind, "add_done_callback") and hasattr(kind, "result") and not hasattr(kind, "_asyncio_future_blocking")
    )


def advise(name: str, size: int, batch_size: int, timeout: float | None) -> None:
    """Say that there are too few callers to fill a batch."""
    with suppress(BaseException):
        logging.getLogger("batchify").warning(
            "%s() gets %d of at most %d items each time, after they waited out the timeout of %s s: no more callers "
            "wait at once. They would wait less with a smaller batch_size or timeout=0; more of them would fill it",
            name,
            size,
            batch_size,
            timeout,
        )


def complain(message: str, *values: object) -> None:
    """Log an error that nobody is left to be told of, with the exception being handled, if any."""
    with suppress(BaseException):  # a handler that raises must not end a flush thread
        logging.getLogger("batchify").error(message, *values, exc_info=sys.exc_info()[0] is not None)
