"""Who gets which result?

The rule of the list function: n items in, n results out, in the same order. Here the function is called, what it
returned is spread over the calls, and what it raised reaches every one of them. Nothing here knows when, or on which
thread.
"""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import attrgetter
from operator import call as call_directly
from types import CoroutineType
from typing import Any

from ._errors import MissingResultError, ResultCountError, own_copy, traceback_of
from ._inside import Runner
from ._options import constants_of, label_of
from ._stats import BatchReport, Observer, Reason

# These have a length or an order, but it is not that of the items.
_NOT_RESULTS = (str, bytes, bytearray, memoryview, set, frozenset)
_TOO_FEW = (
    "%s() gets %d of at most %d items each time, after they waited out the timeout of %s s: no more callers wait at "
    "once. They would wait less with a smaller batch_size or timeout=0; more of them would fill it"
)
_MISSING = object()
_reporting: ContextVar[bool] = ContextVar("batchify report", default=False)  # whether an on_batch runs here


@dataclass(slots=True, init=False, eq=False, repr=False)  # for the slots
class Call:
    """One item of one caller, and the place for its answer; in this class, of a thread that sleeps on the lock `bell`.

    Whoever makes one sets what it needs: an __init__() would be one step more for each item. The caller writes until
    the call is posted, then `left` alone. `entry`, `group` and `number` are the buffer's, and the owner may correct
    `arrival`. `value` and `error` are set by the batch. `error` comes last: while it is missing there is no answer; if
    it is None that is `value`, else it is raised.
    """

    limited = True  # whether it counts against max_pending
    calls_back = False  # whether to tell it may take long
    arrival: float
    bell: Any
    error: Exception | None
    entry: Any
    group: Any
    item: Any
    left: bool
    number: int
    value: Any
    batch: Any  # a weak reference, once it is in one; only of calls that may be awaited inside a function
    # These are set only where an option asks for them.
    context: Context
    item_key: Any
    key: Any
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

    def unclaim(self) -> None:
        """Take that back: it is not in a batch yet."""

    @staticmethod
    def tell(calls: Sequence[Any], results: Sequence[Any], failed: int) -> None:
        """Give each call of this kind its answer: a result, or one of `failed` exceptions; the first one counts."""
        Call.put(calls, results, failed)
        for call in calls:
            try:  # noqa: SIM105 - suppress() takes three calls
                call.bell.release()
            except RuntimeError:  # told before; no RecursionError, as put() needs more room than this
                pass

    @staticmethod
    def put(calls: Sequence[Any], results: Sequence[Any], failed: int) -> None:
        """Put the answers in their places."""
        for call, result in zip(calls, results, strict=True):
            if failed and issubclass(type(result), BaseException):
                call.error = result
            else:
                call.value = result
                call.error = None

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
    """A call of a map, which sleeps until any of its calls is answered; `bell` is the `Ahead` of that map."""

    __slots__ = ()

    limited = False  # a map bounds itself: it reads no more than two batches ahead

    @staticmethod
    def tell(calls: Sequence["MapCall"], results: Sequence[Any], failed: int) -> None:
        Call.put(calls, results, failed)
        for ahead in {call.bell for call in calls}:
            ahead.ring()


def is_sound(call: Call, ask: Callable[[Call], object]) -> bool:
    """Ask what options want to know of a call of a map; where that fails, this is the answer."""
    try:
        ask(call)
    except Exception as error:  # noqa: BLE001 - whatever a function of the user's raises
        call.error = _without_our_frame(error)  # type: ignore[assignment]
        return False
    return True


class Batch:
    """The calls that one call of the function answers: each exactly once, whatever the function does.

    It belongs to whoever runs it, from taking to answering. `run()` calls the function; `settle()` takes what it
    returned, `fail()` what it raised; both end in `_conclude()`, which spreads the answers and makes room for the next
    batch. If the function returned a future, all but `run()` may happen later, on another thread. With `isolate`, a
    batch that failed ends without an answer, and its halves begin `again()`.

    Its entries are calls, or with `dedupe` stand for all calls of one item.
    """

    # What the function may return, for messages.
    accepts = (
        "a list or other sequence, a mapping from item to result, an iterator, or a thread-safe future of one of these"
    )

    runner: Runner | None = None  # while the function runs, or its answers are given
    engine: Any  # until it has ended, as an error that is kept knows this by the function's frames
    to_answer: list[Any] = []  # noqa: RUF012 - until there is one of its own: what is not yet made has no calls
    # Once its turn was lent: the batches that share it, by id(), each of which has lent it to the next one; 0: to one
    # that is not taken yet. One list for all of them: who lends adds to it, who ends a batch takes that out.
    turn: list[int] | None = None
    # What calls the function, or next(); on a thread in a context of the batch's own, which a task has anyway.
    enter: Any = call_directly
    error: BaseException | None = None  # of the whole batch
    _report: Any = None  # what on_batch is to be told, but for what is known at the end
    _hook: Any = None  # what is told it: on_batch, or what that returned as it heard that this began

    def __init__(self, engine: Any, entries: Sequence[Any], reason: Reason, now: float) -> None:
        self.engine = engine
        self._tally = engine.tally
        self._began, self._reason, self._size = now, reason, len(entries)
        self._constants = constants_of(entries[0].key) if engine.grouped else {}
        if engine.options.on_batch is not None:
            calls, self._hook = self.calls(entries), engine.options.on_batch
            self._report = partial(
                BatchReport,
                name=engine.name,
                size=len(entries),
                reason=reason,
                group=label_of(entries[0].key, constants=engine.grouped),
                waits=tuple([now - call.arrival if call.arrival < now else 0.0 for call in calls]),
                contexts=tuple([call.context for call in calls]),
                weight=sum([entry.weight for entry in entries]) if engine.options.weight is not None else None,
            )
        # A list of one list: who pops it is the one to answer. pop() is atomic, so a future that calls back twice, on
        # two threads, is heard once.
        self.to_answer = [entries]

    @property
    def has_lent(self) -> bool:
        """Whether another batch has its turn. Any thread may ask."""
        turn = self.turn
        return turn is not None and id(self) in turn[:-1]

    def leave_turn(self) -> list[int] | None:
        """Return who goes on with its turn, as this has ended."""
        if self.turn is not None:
            with suppress(ValueError):  # it is told so once more, perhaps, after an exception from elsewhere
                self.turn.remove(id(self))
        return self.turn

    # Running the function

    def say_that_it_begins(self) -> None:
        """Let an observer hear so, in the context in which the function is about to run."""
        if isinstance(self._hook, Observer) and not _reporting.get():
            known = self._report.keywords
            try:
                begin = partial(self._hook.begin, known["name"], known["size"], known["reason"], known["contexts"])
                self._hook = self.enter(_reported, begin)
            except BaseException:  # noqa: BLE001 - as in _tell_hook()
                complain("on_batch of %s() raised", self.engine.name)

    async def run_async(self, function: Callable[[list[Any]], Any]) -> None:
        """Call a function that is awaited or is an async generator; in a task of the batch's own."""
        try:
            if self._hook is not None:
                self.say_that_it_begins()
            value = function([entry.item for entry in self.to_answer[0]], **self._constants)
            if type(value) is CoroutineType or not hasattr(type(value), "__aiter__"):
                value = await value
            if type(value) is not list and hasattr(type(value), "__aiter__"):
                entries = self.to_answer[0] = deque(self.to_answer[0])
                async for result in value:
                    if not self._yielded(entries, result):
                        break  # the loop closes a generator that is dropped
                    del result  # it may take long until the next one comes
                value = []
        except Exception as error:  # noqa: BLE001 - whatever it raises
            # A cycle: the error knows the function's frame, that knows this one, and a call its error.
            entries = deque()
            self._raised(error)
        except BaseException as error:  # noqa: BLE001 - it was cancelled, or the loop closed: they must not go on waiting
            self.fail(error)
        else:
            self.settle(value)

    # What the function did

    def settle(self, value: Any) -> None:
        """Spread over the calls what the function returned."""
        try:
            entries = self.to_answer[0]
            if type(value) is not list and isinstance(value, Iterator):
                entries = self.to_answer[0] = deque(entries)
                # Asked once more than there are entries, since what stands behind its last `yield` must run too.
                while (result := self.enter(next, value, _MISSING)) is not _MISSING and self._yielded(entries, result):
                    del result
                value = []
            if type(value) is list and len(value) == len(entries):
                results: Sequence[Any] = value.copy()  # the function may have kept it and change it meanwhile
            else:
                results = self._results(value, entries)
        except BaseException as error:  # noqa: BLE001 - by a strange object; the callers must hear of it all the same
            entries = ()  # as in run_async()
            self._raised(error)
        else:
            self._conclude(results)

    def _yielded(self, entries: "deque[Any]", result: Any) -> bool:
        """Answer the next call; False if there is none left."""
        if not entries:
            complain("%s() yielded more results than the %d items it was given", self.engine.name, self._size)
            return False
        self._answer((entries.popleft(),), (result,), done=False)
        return True

    def _raised(self, error: BaseException) -> None:
        if self.to_answer and not self.to_answer[0]:  # so nobody is left to raise it at
            complain("%s() raised after its last result", self.engine.name)
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Answer every call that has no answer yet with its own copy of the error, or run it again in a half."""
        error = self.error = _without_our_frame(error)
        for entries in self.to_answer:
            isolate = any(kind in type(error).__mro__ for kind in self.engine.options.isolated)
            if isolate and len(entries) > 1 and self.engine.tally is self._tally:  # else see _answer()
                both, middle = list(entries), len(entries) // 2  # of a deque there are no slices
                self._conclude((), (both[:middle], both[middle:]))
            else:
                self._conclude([error] * len(entries))

    def _conclude(self, results: Sequence[Any], halves: Sequence[Sequence[Any]] = ()) -> None:
        """Answer all calls that have no answer yet, or else run these `halves` again; then make room for others."""
        engine = self.engine
        try:
            entries = self.to_answer.pop()
        except IndexError:  # a future called back twice, and the other one was faster
            return
        try:  # with no line before it, as nobody else knows the calls any more
            self._answer(() if halves else entries, results, done=True)
            if halves:
                engine.again(halves)
        except BaseException as error:
            if halves:  # no memory
                self._answer(entries, [error] * len(entries), done=False)
            raise
        finally:
            self.error = None  # it knows this batch, by the frames that called the function
            self.engine = None  # so settle_future() knows that it has ended
            engine.ended(self)
            self.runner = self.enter = None

    # Answers

    def calls(self, entries: Sequence[Any]) -> Sequence[Any]:
        """Return the calls that these entries stand for."""
        return self.engine.buffer.calls_of(entries)  # type: ignore[no-any-return]

    def _answer(
        self, entries: Sequence[Any], results: Sequence[Any], *, done: bool, counted: bool = False, failed: int = 0
    ) -> None:
        """Count, report, then tell these calls. `done`: no answer follows, so the batch has ended."""
        try:  # at once, as above
            engine, calls = self.engine, entries
            if engine.tally is not self._tally:
                return  # nobody is here whom the answers could reach: the function forked, and this is the child
            if engine.options.dedupe:
                calls = self.calls(entries)
                results = [each for entry, each in zip(entries, results, strict=True) for _ in entry]
            # Not isinstance(), which asks what is no exception for its __class__: that may be a lie, or raise.
            for kind in set(map(type, results)):
                if issubclass(kind, BaseException):
                    is_error = [issubclass(type(result), BaseException) for result in results]
                    both = zip(results, is_error, strict=True)
                    results = [own_copy(each, engine.name) if bad else each for each, bad in both]
                    failed = sum(is_error)
                    break
            if done and self._reason == "timeout":
                engine.tally.ended_at = engine.now()
            counted = True  # before it is, as to count twice would be worse than not at all
            engine.tally.answer(len(calls), failed, done)
            if done and self._report is not None:
                self._tell_hook()
            kinds: set[Any] = set(map(type, calls))
            if len(kinds) == 1:
                kinds.pop().tell(calls, results, failed)
            else:
                for kind in sorted(kinds, key=attrgetter("calls_back")):  # these last, as callbacks may take long
                    chosen = [each for each in zip(calls, results, strict=True) if type(each[0]) is kind]
                    kind.tell(*zip(*chosen, strict=True), failed)
        except BaseException as error:  # no memory, a recursion limit, or an exception from another thread
            engine, calls = self.engine, self.calls(entries)
            if not counted:
                results, failed = [own_copy(error, engine.name)] * len(calls), len(calls)
                engine.tally.answer(failed, failed, done)
            if done and self._report is not None:
                self._tell_hook()
            for call, result in zip(calls, results, strict=True):
                with suppress(Exception):
                    call.tell((call,), (result,), 1)  # or none: 1 only lets it look
            raise

    def _tell_hook(self) -> None:
        report, self._report, hook, self._hook = self._report, None, self._hook, None
        # Not in the midst of another report, if that calls a batched function, or a finalizer does: it may hold a lock
        # that it would want once more, and there would be no end to its calls.
        if _reporting.get():
            return
        engine, token = self.engine, _reporting.set(True)
        try:
            hook(
                report(
                    batch_size=engine.options.batch_size,
                    duration=engine.now() - self._began,
                    pending=len(engine.buffer),
                    in_flight=engine.tally.in_flight,
                    error=self.error,
                    refused=engine.tally.newly_refused(),
                )
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
        is_table = hasattr(value, "columns")
        if isinstance(value, _NOT_RESULTS) or is_table or not hasattr(value, "__len__"):
            what = "None" if value is None else type(value).__name__
            hint = "; await it first" if hasattr(type(value), "__await__") else ""
            if isinstance(value, CoroutineType):
                value.close()  # else it would warn that nobody awaited it
                hint = (
                    "; a plain function around an `async def` one hides that it must be awaited: put @batched beneath "
                    "it, or mark it with inspect.markcoroutinefunction()"
                )
            if is_table:
                hint = "; the entries of a table are its columns, so return its rows: .to_numpy(), or a list of them"
            return self._broken(TypeError, what, f": {self.accepts}{hint}")
        try:
            count = len(value)
        except TypeError:  # an array without dimensions has a __len__() too
            return self._broken(TypeError, f"{type(value).__name__} without a length", f": {self.accepts}")
        if count == len(entries):
            results = list(islice(value, count + 1))  # bounded, since len() may lie
            count = len(results)
            if count == len(entries):
                return results
        count += self._size - len(entries)  # those that were yielded before
        plural, plurals = "" if count == 1 else "s", "" if self._size == 1 else "s"
        return self._broken(ResultCountError, f"{count} result{plural} for {self._size} item{plurals}")

    def _look_up(self, results: Mapping[Any, Any], item: Any) -> Any:
        try:
            return results[item]  # so a defaultdict answers
        except KeyError:
            return MissingResultError(f"{self.engine.name}() returned a mapping without a value for this item", item)
        except BaseException as error:  # noqa: BLE001 - that it cannot be hashed or compared is this item's matter alone
            return _without_our_frame(error)

    def _broken(self, kind: type[Exception], returned: str, accepts: str = "") -> list[Any]:
        """Return, for each entry, the error that says which rule the function broke."""
        rule = "it must return one result per item, in the same order"
        self.error = kind(f"{self.engine.name}() returned {returned}; {rule}{accepts}")
        return [self.error] * len(self.to_answer[0])


def _reported(begin: Callable[[], Any]) -> Any:
    """Call it as if in a report, so that no batch is reported that begins in its midst."""
    token = _reporting.set(True)
    try:
        return begin()
    finally:
        _reporting.reset(token)


def _without_our_frame(error: BaseException) -> BaseException:
    """Take the frame that caught it out of the traceback: it knows the calls, and they will know the error, a cycle."""
    traceback = traceback_of(error)
    return BaseException.with_traceback(error, traceback.tb_next if traceback else None)


def is_future(value: object) -> bool:
    # Asked of the type: a proxy's or a mock's instance says yes to any name. Not one of asyncio, whose
    # add_done_callback() is for its loop's thread only; known, without importing asyncio, by what asyncio.isfuture()
    # looks for.
    has = partial(hasattr, type(value))
    return has("add_done_callback") and has("result") and not has("_asyncio_future_blocking")


def warn_of_few_callers(name: str, size: int, batch_size: int, timeout: float | None) -> None:
    """Say that there are too few callers to fill a batch."""
    with suppress(BaseException):
        logging.getLogger("batchify").warning(_TOO_FEW, name, size, batch_size, timeout)


def complain(message: str, *values: object) -> None:
    """Log an error that nobody is left to be told of, with the exception being handled, if any."""
    with suppress(BaseException):  # a handler that raises must not end a flush thread
        logging.getLogger("batchify").error(message, *values, exc_info=sys.exc_info()[0] is not None)
