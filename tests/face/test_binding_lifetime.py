"""The buffer of a method goes with its instance, which it does not keep alive; calls that wait do."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from .. import inside
from ..tools import HAS_GIL, Gated, until
from .test_binding import METHODS, Scaler, answer, awaited, batched


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_instance_is_collected_at_once_and_its_thread_ends() -> None:
    before = threading.enumerate()
    one = Scaler(10)
    assert one.scale(1) == 10
    (thread,) = [each for each in threading.enumerate() if each not in before and "Scaler.scale" in each.name]
    gone = weakref.ref(one)
    gc.disable()
    try:
        del one
        assert gone() is None
        until(lambda: not thread.is_alive())
    finally:
        gc.enable()
    assert inside.buffers_of_dead_instances(Scaler.scale) == 0


@METHODS
def test_method_of_a_new_instance_at_an_old_address_has_a_new_buffer(method: str) -> None:
    answered, ids = [], set()
    for factor in range(50):
        one = Scaler(factor)
        ids.add(id(one))
        assert getattr(one, method).stats.batches == 0
        answered.append(answer(getattr(one, method), 1))
        del one
    assert answered == list(range(50))
    assert len(ids) < 50 or not HAS_GIL  # or this test shows nothing, as where memory is freed later


def test_buffer_of_a_dead_instance_is_not_used_for_another() -> None:
    one, two = Scaler(10), Scaler(20)
    assert one.scale(1) == 10
    inside.leave_the_buffer_of(one, to=two, method=Scaler.scale)
    assert two.scale(1) == 20
    assert two.scale(2) == 40
    assert two.scale.stats.batches == 2


def test_batch_of_a_dead_instance_raises_reference_error() -> None:
    one = Scaler(10)
    run = inside.list_function_of(one.scale)
    del one
    with pytest.raises(ReferenceError, match=r"^the instance that was to answer is gone$"):
        run([1])


@pytest.mark.parametrize("how", ["submit", "map", "aio", "call"])
def test_waiting_call_keeps_its_instance_alive(how: str) -> None:
    gate = Gated()

    class One:
        @batched(batch_size=2)
        def scale(self, xs: list[Any]) -> Any:
            return gate(xs)

    one = One()
    gone = weakref.ref(one)
    busy = one.scale.submit("busy")
    gate.entered.acquire()
    results: list[Any] = []
    if how == "submit":
        one.scale.submit("x").add_done_callback(lambda future: results.append(future.result()))
    elif how == "map":
        results_of_map = one.scale.map(["x"])
        threading.Thread(target=lambda: results.extend(results_of_map)).start()
    elif how == "aio":
        awaits = awaited(one.scale.aio("x"))
        threading.Thread(target=lambda steps: results.append(asyncio.run(steps)), args=(awaits,)).start()
        del awaits
    else:
        threading.Thread(target=lambda call: results.append(call("x")), args=(one.scale,)).start()
    until(lambda: gone() is None or one_of(gone).scale.stats.pending == 1)
    del one
    gc.collect()
    assert gone() is not None
    gate.open()
    assert busy.result() == "busy"
    until(lambda: results == ["x"])
    if how == "map":
        del results_of_map
    until(lambda: gone() is None)


def one_of(reference: "weakref.ref[Any]") -> Any:
    return reference()


@pytest.mark.parametrize("how", ["submit", "map", "map async", "call"])
def test_waiting_call_on_a_loop_keeps_its_instance_alive(how: str) -> None:
    class One:
        @batched(batch_size=2)
        async def fetch(self, xs: list[Any]) -> list[Any]:
            return xs

    async def items() -> Any:
        yield "x"

    async def main() -> None:
        one = One()
        gone = weakref.ref(one)
        starts: dict[str, Callable[[Any], Any]] = {
            "submit": lambda fetch: fetch.submit("x"),
            "call": lambda fetch: fetch("x"),
            "map": lambda fetch: anext(fetch.map(["x"])),
            "map async": lambda fetch: anext(fetch.map(items())),
        }
        waits = starts[how](one.fetch)
        del one
        gc.collect()
        assert gone() is not None
        assert await waits == "x"
        del waits
        while gone() is not None:  # the loop closes a generator that is dropped
            gc.collect()
            await asyncio.sleep(0)

    asyncio.run(main())


def test_cancelled_future_lets_go_of_its_instance() -> None:
    class One:
        @batched(batch_size=2, timeout=None)
        def scale(self, xs: list[Any]) -> list[Any]:
            return xs

        @batched(batch_size=2, timeout=None)
        async def fetch(self, xs: list[Any]) -> list[Any]:
            return xs

    async def check(submit: Callable[[One], Any]) -> None:
        one = One()
        gone = weakref.ref(one)
        future = submit(one)
        del one
        assert gone() is not None
        assert future.cancel()
        while gone() is not None:
            gc.collect()
            await asyncio.sleep(0)

    asyncio.run(check(lambda one: one.scale.submit(1)))
    asyncio.run(check(lambda one: one.fetch.submit(1)))


def test_submit_that_is_kept_alone_still_fills_batches() -> None:
    batches: list[list[int]] = []

    def remember(items: list[int]) -> list[int]:
        batches.append(items.copy())
        return items

    submit = batched(batch_size=2, timeout=None)(remember).submit
    gc.collect()
    futures = [submit(item) for item in range(4)]
    assert [future.result() for future in futures] == [0, 1, 2, 3]
    assert batches == [[0, 1], [2, 3]]


def test_finalizer_of_an_instance_may_call_its_method() -> None:
    results: list[Any] = []

    class Late:
        @batched(batch_size=2)
        def scale(self, xs: list[Any]) -> list[Any]:
            return [(type(self).__name__, x) for x in xs]

        def __del__(self) -> None:
            results.append(self.scale(3))

    late: Any = Late()
    del late
    assert results == [("Late", 3)]
    late = Late()
    late.itself = late
    del late
    gc.collect()
    assert results == [("Late", 3)] * 2
