"""Would this wait for itself?

A function may use batched functions, itself included, directly or in a ring. Who waits there for an answer keeps a turn
of its function meanwhile, perhaps the very one that the answer needs. So it lends that turn: batches on the way to the
answer run where it waits. A wait for a call that cannot be answered before this very wait has ended gets an error.

One `ContextVar` says where a call comes from, and one graph who waits for whom, for threads and event loops alike:
  - a runner waits for the calls that it awaits;
  - a call that waits in a buffer, for all runners that hold up its engine: those that have its turns, if none is free,
    and the flush thread;
  - a call in a batch, for the runner of that batch.
How no ring is overlooked: a runner first notes what it awaits, then looks for a ring through itself. So of two that
close a ring one sees it; and who sees it wakes those that are to lend, which look once more.
"""

import weakref
from _thread import get_ident
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from ._errors import WaitsForItselfError


class Runner:
    """What runs functions: a thread of ours; on an event loop each batch by itself, as these wait side by side."""

    thread: int | None = None  # None once a batch has ended
    # What is awaited here, with its engine, some of it answered by now. Written by this thread alone (a finalizer on
    # it too), and read by all that look for a ring, so on a copy.
    awaits: list[tuple[Any, Any]]
    loop: Callable[[], Any] | None = None  # a weak reference to the event loop on which something is awaited here
    noted: list[tuple[Any, Any]]  # since it looked
    _will_look = False  # once this has gone round
    cannot_lend = False  # whether it waits where it cannot lend its turn. Any thread may ask

    @property
    def has_lent(self) -> bool:
        """Whether another batch has the turn of the batch that runs here. Any thread may ask."""
        raise NotImplementedError

    def take_room(self) -> None:
        """Raise a RecursionError unless there is room for a wait here, before anything is passed that it is for."""

    def wake(self) -> None:
        """Let it look whether it is to lend. Any thread may call."""
        loop = None if self.loop is None else self.loop()
        if loop is not None:
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self.look)

    def lend(self) -> bool:
        """Lend a turn, if what is awaited needs one that this has; wake those who have others that it needs.

        True: a batch was run here meanwhile, so there is to be another look.
        """
        raise NotImplementedError

    def look_soon(self, loop: Any) -> None:
        """Look once for all that is awaited in this round of an event loop."""
        before, self.loop = self.loop, weakref.ref(loop)
        # CPython has one weak reference to a loop, so `is` compares loops. The one before may be closed by now.
        if not self._will_look or before is not self.loop:
            self._will_look = True
            loop.call_soon(self.look)

    def look(self) -> None:
        """Give an error to what is awaited on an event loop and cannot be answered, and lend what the rest needs."""
        self._will_look = False
        if self.thread is None:
            return  # it has ended
        while self.lend():
            pass
        noted, self.noted = self.noted, []
        for engine, call in self.hopeless(noted):
            call.tell((call,), (waits_for_itself(engine),), 1)

    def note(self, engine: Any, call: Any, loop: Any) -> None:
        """Note that a call is awaited here from now on, by what runs on that event loop, and look soon."""
        self.awaits.append((engine, call))
        self.noted.append((engine, call))
        if len(self.awaits) >= 64 and not len(self.awaits) & (len(self.awaits) - 1):  # so it is done seldom
            self.awaits = self.unanswered()
        self.look_soon(loop)  # after it is noted

    def forget(self, engine: Any, call: Any) -> None:
        """Forget what note() was told: it is awaited no more."""
        with suppress(ValueError):  # it was answered, and forgotten for that
            self.awaits.remove((engine, call))

    def unanswered(self) -> list[tuple[Any, Any]]:
        """Return what is awaited here and has no answer yet, and whose callers have not left."""
        return [each for each in self.awaits.copy() if not each[1].is_over()]

    def hopeless(self, awaited: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Return which calls no lending can answer: those in batches that wait for this runner."""
        calls = [each for each in awaited if not each[1].is_over()]
        needed = {other for at, _, other in _lasting_cycle(self, calls, certain=True) if at is self}
        return [each for each in calls if needed and not needed.isdisjoint(_needed(*each, certain=True))]

    def to_lend(self) -> Iterator[tuple["Runner", Any, Any]]:
        """Yield who is to lend a turn of which engine to which call, so that what is awaited here can be answered."""
        while self.awaits and self.awaits[0][1].is_over():
            del self.awaits[0]
        if self.awaits:  # a short cut, as they may be very many: the first one may need a turn that this has
            engine, call = self.awaits[0]
            if _is_waiting(call) and self in engine.held_up_by():
                yield self, engine, call
                return
        ring = {at for at, _, _ in _cycle_of(self, self.unanswered())}
        for runner in ring:
            # Of many calls one at a time: there will be another look when its batch has ended.
            first = {engine: call for engine, call in reversed(runner.unanswered()) if _is_waiting(call)}
            for engine, call in first.items():
                yield from ((lender, engine, call) for lender in ring.intersection(engine.held_up_by()))

    def would_wait_for_itself(self, engine: Any, call: Any) -> bool:
        """Whether to wait for that here would close a ring."""
        return bool(_lasting_cycle(self, [(engine, call)]))


# None outside.
current: ContextVar[Runner | None] = ContextVar("batchify runner", default=None)


def here() -> Runner | None:
    """Return the runner that this is inside of; None where a context was copied to another thread, or kept."""
    found = current.get()
    return found if found is not None and found.thread == get_ident() else None


def waits_for_itself(engine: Any) -> WaitsForItselfError:
    return WaitsForItselfError(
        f"a call of {engine.name}() is waited for inside a batch that must end before {engine.name}() can answer it; "
        "let the batch end, and wait outside"
    )


def _is_waiting(call: Any) -> bool:
    """Whether a call that has no answer stands in a buffer: it was posted, and is in no batch."""
    return hasattr(call, "arrival") and not hasattr(call, "batch")


def _needed(engine: Any, call: Any, *, certain: bool) -> Collection[Runner]:
    """Return the runners without which a call is not answered; `certain`: whatever is lent."""
    if hasattr(call, "batch"):
        runner = getattr(call.batch(), "runner", None)  # it may be garbage
        return () if runner is None else (runner,)
    waits = hasattr(call, "arrival")  # else it is a drain, or a close
    found: Collection[Runner] = engine.held_up_by(at_all=not waits)
    return [runner for runner in found if runner.cannot_lend] if certain and waits else found


Edges = set[tuple[Runner, Any, Runner]]  # who waits, for which call, that needs whom


def _lasting_cycle(runner: Runner, awaited: list[tuple[Any, Any]], *, certain: bool = False) -> Edges:
    """Return a ring as _cycle_of() does, all of which stood at one moment.

    Others go on while this looks: one wait may have ended before it saw the next one. What it sees twice has lasted.
    """
    ring = _cycle_of(runner, awaited, certain=certain)
    return _cycle_of(runner, awaited, certain=certain, among=ring) if ring else ring


def _cycle_of(
    runner: Runner, awaited: list[tuple[Any, Any]], *, certain: bool = False, among: Edges | None = None
) -> Edges:
    """Return the edges on the ways from a runner, by some of what is awaited there, back to itself."""
    edges_to: dict[Runner, Edges] = {runner: set()}
    todo = [runner]
    for at in todo:
        calls = awaited if at is runner else at.unanswered()
        # What holds up one call of those that wait in a buffer holds up all.
        for engine, call in {engine if _is_waiting(call) else call: (engine, call) for engine, call in calls}.values():
            for other in _needed(engine, call, certain=certain):
                edge = at, call, other
                if among is None or edge in among:
                    if other not in edges_to:
                        edges_to[other] = set()
                        todo.append(other)
                    edges_to[other].add(edge)
    ring: Edges = set()
    found = [runner]
    for other in found:
        found += {at for at, _, _ in edges_to[other]}.difference(found)
        ring |= edges_to[other]
    return ring
