"""How do coroutines wait? Imported with the first `await f.aio(item)`."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ._batch import Call, GroupedCall


class LoopCall(GroupedCall):
    """A call whose caller is a coroutine."""

    __slots__ = ("answered", "home")

    home: asyncio.AbstractEventLoop

    def __init__(self, item: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.item = item
        self.home = loop
        # Only says when. The answer stays in the call, so that nobody misses an exception that nobody waits for.
        self.answered: asyncio.Future[None] = loop.create_future()

    @staticmethod
    def deliver_group(calls: Sequence["LoopCall"]) -> None:
        # One message per batch and loop: a message wakes the loop, and costs several times what the rest does.
        with suppress(RuntimeError):  # the loop is closed, so nobody waits; asking beforehand would be a race
            calls[0].home.call_soon_threadsafe(_wake, calls)


def _wake(calls: Sequence[LoopCall]) -> None:
    for call in calls:
        if not call.answered.done():  # its caller may have been cancelled
            call.answered.set_result(None)


async def answered(item: Any, put: Callable[[Call], None], withdraw: Callable[[Call], bool]) -> Any:
    """Pass an item, and return its result or raise its error once it is answered."""
    call = LoopCall(item, asyncio.get_running_loop())
    put(call)
    try:
        await call.answered
    except BaseException:  # cancelled, or closed
        call.answered.cancel()
        withdraw(call)
        raise
    return call.outcome()
