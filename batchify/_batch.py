"""Who gets which result?

The rule of the list function: n items in, n results out, in the same order. Here the function is called, what it
returned is spread over the calls, and what it raised reaches every one of them. Nothing here knows when, or on which
thread.
"""

import logging
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from itertools import islice
from operator import call as call_directly
from types import CoroutineType
from typing import Any

from ._errors import MissingResultError, ResultCountError, own_copy, traceback_of
from ._inside import Place
from ._options import NO_CONSTANTS, Options
from ._stats import Reason, report_to

# These have a length or an order, but it is not that of the items.
_NOT_RESULTS = (str, bytes, bytearray, memoryview, set, frozenset)
_MISSING = object()
_reporting: ContextVar[bool] = ContextVar("batchify report", default=False)  # whether an on_batch runs here


class Call:
    """One item of one caller, and the place for its answer; this one of a thread that sleeps on `bell`.

    Whoever makes one sets what it needs: an __init__() would be one step more for each item. The caller writes until
    the call is posted, then `left` alone. `waits` and `group` are the buffer's. `value` and `error` are set by the
    batch: `error` is unset until there is an answer; then it is None or is raised.
    """

    # context, item_key, key and weight are set only where an option asks for them.
    __slots__ = (
        "arrival",
        "bell",
        "context",
        "entry",
        "error",
        "group",
        "item",
        "item_key",
        "key",
        "left",
        "number",
        "value",
        "waits",
        "weight",
    )

    limited = True  # whether it counts against max_pending
    arrival: float
    bell: Any
    context: Context
    error: Exception | None
    entry: Any
    group: Any
    item: Any
    item_key: Any
    key: Any
    number: int
    value: Any
    waits: bool
    weight: float

    def has_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return hasattr(self, "left")

    def is_over(self) -> bool:
        """Whether it is answered, or has left."""
        return hasattr(self, "error") or self.has_left()

    def leave(self) -> None:
        """Say that nobody waits for it any more."""
        self.left = True

    def claim(self) -> bool:
        """Whether it is to be answered. From here on its caller cannot leave without an answer being made for it."""
        return not self.has_left()

    @staticmethod
    def tell(calls: Sequence[Any], results: Sequence[Any], failed: int) -> None:
        """Give each call of this kind its answer: a result, or one of `failed` exceptions; the first one counts."""
        for call, result in zip(calls, results, strict=True):
            call.answer(result, failed)
            try:  # noqa: SIM105 - suppress() takes three calls
                call.bell.release()
            except RuntimeError:  # told before
                pass

    def answer(self, result: Any, failed: int) -> None:
        """Put the answer in its place."""
        if failed and issubclass(type(result), BaseException):
            self.error = result
        else:
            self.value = result
            self.error = None

    def outcome(self) -> Any:
        """Return the result or raise the error, once told."""
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
    """A call of a map, which sleeps until any of its calls is answered; `bell` is what wakes the map."""

    __slots__ = ()

    limited = False  # a map bounds itself: it reads no more than two batches ahead

    @staticmethod
    def tell(calls: Sequence["MapCall"], results: Sequence[Any], failed: int) -> None:
        for call, result in zip(calls, results, strict=True):
            call.answer(result, failed)
        for bell in {call.bell for call in calls}:
            bell()


class Ahead:
    """What a map has read and not yielded yet."""

    def __init__(
        self, items: Iterator[Any], bell: Callable[[], object], ask: Callable[[Call], object] | None = None
    ) -> None:
        self.calls: deque[MapCall] = deque()
        self.more = True
        self._items = items
        self._bell = bell
        self._ask = ask
        self._error: Exception | None = None

    def read(self, size: int) -> list[MapCall]:
        """Read so many items, or fewer if there are no `more`. Returns the calls that are to wait."""
        calls: list[MapCall] = []
        bell = self._bell
        try:
            for item in islice(self._items, min(size, sys.maxsize)):
                call = MapCall()
                call.item = item
                call.bell = bell
                calls.append(call)
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


class Batch(Place):
    """The calls that one call of the function answers: each exactly once, whatever the function does.

    It belongs to whoever runs it, from taking to answering. `run()` calls the function; `settle()` takes what it
    returned, `fail()` what it raised; both end in `_conclude()`, which spreads the answers and calls `finish()`. If the
    function returned a future, all but `run()` may happen later, on another thread. With `isolate`, a batch that failed
    ends without an answer, and its halves begin `again()`.

    Its entries are calls, or with `dedupe` stand for all calls of one item.
    """

    # What the function may return, for messages.
    accepts = (
        "a list or other sequence, a mapping from item to result, an iterator, or a thread-safe future of one of these"
    )

    __slots__ = (
        "_began",
        "_constants",
        "_size",
        "_tell",
        "_unanswered",
        "engine",
        "enter",
        "error",
        "oldest",
        "takes_turn",
    )

    engine: Any

    def __init__(self, engine: Any, entries: Sequence[Any], reason: Reason, now: float, *, takes_turn: bool) -> None:
        options: Options = engine.options
        self.engine = engine  # until it has finished, as an error that is kept knows this by the function's frames
        self.life = engine.life
        self.passed = self.beneath = self.thread = None
        self.takes_turn = takes_turn  # False: it runs past the limit of `concurrency`, as somebody inside waits for it
        # Calls the function, or next(); on a thread in a context of the batch's own, which a task has anyway.
        self.enter: Any = call_directly
        self.error: BaseException | None = None  # of the whole batch
        self.oldest: float = entries[0].arrival
        self._began = now
        self._size = len(entries)
        self._constants = entries[0].key.constants if engine.grouped else NO_CONSTANTS
        # What tells on_batch of this batch; None if there is none.
        self._tell: Any = None
        if options.on_batch is not None:
            self._tell = report_to(options.on_batch, engine.name, reason, entries, self.calls(entries), now)
        # A list of one list: who pops it is the one to answer. pop() is atomic, so a future that calls back twice, on
        # two threads, is heard once.
        self._unanswered = [entries]

    # What a subclass does

    def tell(self, calls: Sequence[Any], results: Sequence[Any], failed: int) -> None:
        """Give the calls their answers."""
        kinds: set[Any] = set(map(type, calls))
        if len(kinds) == 1:
            kinds.pop().tell(calls, results, failed)
            return
        # Futures last, as their callbacks may take long.
        for kind in sorted(kinds, key=lambda kind: kind.__name__ == "FutureCall"):
            chosen = [position for position, call in enumerate(calls) if type(call) is kind]
            kind.tell([calls[position] for position in chosen], [results[position] for position in chosen], failed)

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        """See to it that each of these is run as a batch of its own: before all that waits, or at once as this one."""
        if self.is_forgotten():
            return
        if self.takes_turn:
            self.engine.again(parts)
        else:
            self.run_at_once([batch for part in parts for batch in self.engine.at_once(part, "isolate")])

    def run_at_once(self, batches: list[Any]) -> None:
        """Run these when this one has ended."""
        raise NotImplementedError

    def finish(self) -> None:
        """Make room for the next batch. Comes once, after the last answer."""
        self.engine.places.discard(self)
        self.engine.ended(self)
        self.thread = self.passed = self.enter = None  # the last one is a cycle
        self.engine = None

    def is_forgotten(self) -> bool:
        """Whether nobody is here whom the answers could reach."""
        return False

    # Running the function

    def run(self, function: Callable[[list[Any]], Any]) -> None:
        """Call the function with a list of its own, and settle every call by what it does."""
        try:
            value = self.enter(function, self._items(), **self._constants)
            if type(value) is not list and _is_future(value):
                self.expect(value)
                return
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the thread, and leave all behind it waiting
            self.fail(error)
        else:
            self.settle(value)

    def _items(self) -> list[Any]:
        return [entry.item for entry in self._unanswered[0]]

    def expect(self, future: Any) -> None:
        """See to it that `settle_future()` is called when the future is done."""
        future.add_done_callback(self.settle_future)

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

    # What the function did

    def settle(self, value: Any) -> None:
        """Spread over the calls what the function returned."""
        try:
            if type(value) is list and len(value) == self._size:
                results: Sequence[Any] = value.copy()  # the function may have kept it and change it meanwhile
            elif isinstance(value, Iterator):
                self._stream(value)
                return
            else:
                results = self._results(value, self._unanswered[0])
        except BaseException as error:  # noqa: BLE001 - by a strange object; the callers must hear of it all the same
            self.fail(error)
        else:
            self._conclude(results)

    def fail(self, error: BaseException) -> None:
        """Answer every call that has no answer yet with its own copy of the error, or run it again in a half."""
        error = self.error = _without_our_frame(error)
        for entries in self._unanswered:
            if len(entries) > 1 and self.engine.options.isolate and issubclass(type(error), Exception):
                self._halve()
            else:
                self._conclude([error] * len(entries))

    def _halve(self) -> None:
        try:
            entries = list(self._unanswered.pop())  # of a deque there are no slices
        except IndexError:  # as in _conclude()
            return
        middle = len(entries) // 2
        try:
            self._answer((), (), done=True)
            self.again((entries[:middle], entries[middle:]))
        except BaseException as error:  # no memory
            self._answer(entries, [error] * len(entries), done=False)
            raise
        finally:
            self.error = None
            self.finish()

    def _conclude(self, results: Sequence[Any]) -> None:
        """Answer all calls that have no answer yet."""
        try:
            entries = self._unanswered.pop()
        except IndexError:  # a future called back twice, and the other one was faster
            return
        try:
            self._answer(entries, results, done=True)
        finally:
            self.error = None  # it knows this batch, by the frames that called the function
            self.finish()

    def _stream(self, results: Iterator[Any]) -> None:
        """Answer each call as soon as its result is yielded."""
        entries = self._unanswered[0] = deque(self._unanswered[0])
        try:
            # Asked once more than there are entries, since what stands behind its last `yield` must run too.
            while (result := self.enter(next, results, _MISSING)) is not _MISSING:
                if not self._yielded(entries, result):
                    break
                del result  # it may take long until the next one comes
        except BaseException as error:  # noqa: BLE001 - as in run()
            self._stream_failed(entries, error)
        else:
            self._stream_ended(entries)
        finally:
            del entries  # a cycle: the error knows the function's frame, that knows this one, and a call its error

    async def _stream_async(self, results: AsyncIterator[Any]) -> None:
        """As _stream()."""
        entries = self._unanswered[0] = deque(self._unanswered[0])
        try:
            async for result in results:
                if not self._yielded(entries, result):
                    break  # the loop closes a generator that is dropped
                del result
        except Exception as error:  # noqa: BLE001 - as in run()
            self._stream_failed(entries, error)
        except BaseException as error:  # noqa: BLE001 - it was cancelled, or the loop closed
            self.fail(error)
        else:
            self._stream_ended(entries)

    def _yielded(self, entries: "deque[Any]", result: Any) -> bool:
        """Answer the next call; False if there is none left."""
        if not entries:
            complain("%s() yielded more results than the %d items it was given", self.engine.name, self._size)
            return False
        self._answer((entries.popleft(),), (result,), done=False)
        return True

    def _stream_failed(self, entries: "deque[Any]", error: BaseException) -> None:
        if not entries:  # so nobody is left to raise it at
            complain("%s() raised after its last result", self.engine.name)
        self.fail(error)

    def _stream_ended(self, entries: "deque[Any]") -> None:
        if entries:
            self.error = self._wrong_count(self._size - len(entries))
        self._conclude([self.error] * len(entries))

    # Answers

    def calls(self, entries: Sequence[Any]) -> Sequence[Any]:
        """Return the calls that these entries stand for."""
        calls: Sequence[Any] = self.engine.callers(entries)
        return calls

    def _answer(
        self, entries: Sequence[Any], results: Sequence[Any], *, done: bool, counted: bool = False, failed: int = 0
    ) -> None:
        """Count, report, then tell these calls. `done`: no answer follows, so the batch has ended."""
        try:  # at once, as nobody else knows these calls any more
            if self.is_forgotten():
                return
            calls, name = entries, self.engine.name
            if self.engine.options.dedupe:
                results = [each for entry, each in zip(entries, results, strict=True) for _ in entry.callers]
                calls = self.calls(entries)
            # Not isinstance(), which asks what is no exception for its __class__: that may be a lie, or raise.
            for kind in set(map(type, results)):
                if issubclass(kind, BaseException):
                    is_error = [issubclass(type(result), BaseException) for result in results]
                    results = [
                        own_copy(each, name) if bad else each for each, bad in zip(results, is_error, strict=True)
                    ]
                    failed = sum(is_error)
                    break
            counted = True  # it is as good as done: nothing is called here that could fail
            self._count(len(calls), failed, done=done)
            self.tell(calls, results, failed)
        except BaseException as error:  # no memory, a recursion limit, or an exception from another thread
            calls = self.calls(entries)
            if not counted:
                results, failed = [own_copy(error, self.engine.name)] * len(calls), len(calls)
                self._count(len(calls), len(calls), done=done)
            for call, result in zip(calls, results, strict=True):
                with suppress(Exception):
                    call.tell((call,), (result,), failed)
            raise

    def _count(self, items: int, failed: int, *, done: bool) -> None:
        engine = self.engine
        now = engine.now() if done else None
        tally = engine.tally
        with tally.lock:
            tally.answer(items, failed, now)
        # Not in the midst of another report, if that calls a batched function, or a finalizer does: it may hold a lock
        # that it would want once more, and there would be no end to its calls.
        if now is None or self._tell is None or _reporting.get():
            return
        token = _reporting.set(True)
        try:
            self._tell(
                batch_size=engine.options.batch_size,
                duration=now - self._began,
                pending=engine.waiting()[0],
                in_flight=engine.tally.in_flight,
                error=self.error,
            )
        except BaseException:  # noqa: BLE001 - the callers of the batch must have their answers all the same
            complain("on_batch of %s() raised", engine.name)
        finally:
            _reporting.reset(token)

    # The rule

    def _results(self, value: Any, entries: Sequence[Any]) -> Sequence[Any]:
        """Return one result per entry, or where a rule is broken one error per entry. Iterates `value` once."""
        if isinstance(value, Mapping):
            return [self._look_up(value, entry.item) for entry in entries]
        # A table's entries are its columns, and a square one would pass the check of the length.
        if isinstance(value, _NOT_RESULTS) or not hasattr(value, "__len__") or hasattr(value, "columns"):
            if isinstance(value, CoroutineType):
                value.close()  # else it would warn that nobody awaited it
            what = "None" if value is None else type(value).__name__
            hint = "; await it first" if hasattr(type(value), "__await__") else ""
            return self._all(
                TypeError(
                    f"{self.engine.name}() returned {what}; it must return one result per item, in the same order: "
                    f"{self.accepts}{hint}"
                )
            )
        count = len(value)
        if count == len(entries):
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
        return MissingResultError(f"{self.engine.name}() returned a mapping without a value for this item")

    def _wrong_count(self, results: int) -> ResultCountError:
        return ResultCountError(
            f"{self.engine.name}() returned {results} result{'' if results == 1 else 's'} for {self._size} "
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
