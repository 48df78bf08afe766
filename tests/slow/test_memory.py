"""Memory does not grow with the number of calls, whatever becomes of them."""

import pytest

from ..tools import HAS_GIL, run_script

pytestmark = pytest.mark.thread_unsafe(reason="programs of their own")


@pytest.mark.parametrize("kind", ["threads", "aio", "async def"])
def test_memory_does_not_grow_over_100_000_calls(kind: str) -> None:
    """With errors and cancellations among them, and without the garbage collector: by counting alone."""
    run_script(f"""if True:
        import asyncio, contextlib, gc, threading, tracemalloc
        from batchify import batched

        def answer(items):
            if 7 in items:
                raise ValueError("seven")
            return [KeyError(item) if item == 3 else item for item in items]

        async def answer_there(items):
            await asyncio.sleep(0)
            return answer(items)

        f = batched(batch_size=8)(answer_there if {kind!r} == "async def" else answer)

        def by_threads(rounds):
            def calls():
                for n in range(5):
                    with contextlib.suppress(KeyError, ValueError):
                        f(n)
            for _ in range(rounds):
                threads = [threading.Thread(target=calls) for _ in range(2)]
                for thread in threads:
                    thread.start()
                futures = [f.submit(n) for n in range(80)]
                for future in futures[::3]:
                    future.cancel()
                [future.cancelled() or future.exception() for future in futures]
                f.timeout = None
                assert f.submit(0).cancel()
                f.timeout = 0.0
                with contextlib.suppress(ValueError):  # of a batch it shares
                    list(f.map([1] * 10))
                for thread in threads:
                    thread.join()

        async def by_loop(rounds):
            call = f if {kind!r} == "async def" else f.aio
            for _ in range(rounds):
                tasks = [asyncio.ensure_future(call(n)) for n in range(100)]
                await asyncio.sleep(0)
                for task in tasks[::3]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                tasks.clear()

        def by_loops(rounds):
            asyncio.run(by_loop(rounds))

        run = by_threads if {kind!r} == "threads" else by_loops
        gc.disable()
        run(20)
        if {kind!r} != "threads":
            gc.collect()  # what asyncio.run() itself leaves
        tracemalloc.start()
        run(20)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        run(1000)
        if {kind!r} != "threads":
            gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        assert f.stats.answered + f.stats.failed + f.stats.cancelled > 95_000, f.stats
        assert f.stats.cancelled >= {1000 if kind == "threads" else 0}, f.stats
        # Less than a byte for each call: what is left is not theirs. Without a GIL some of it is freed later.
        assert grown < {80_000 if HAS_GIL else 400_000}, grown
    """)
