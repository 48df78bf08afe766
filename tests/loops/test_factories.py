"""Batches run in tasks on any kind of loop: uvloop, debug mode, with task factories, with eager tasks."""

import gc
import weakref

import pytest

from ..kit import AsyncGated, batched, our_tasks, run, settle
from ..tools import run_script

pytestmark = pytest.mark.usefixtures("no_noise")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_debug_mode_factories_and_eager_tasks_are_silent(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    script = f"""if True:
        import asyncio
        from {loop} import new_event_loop
        from batchify import batched

        @batched(batch_size=4, timeout=0.01)
        async def f(items):
            await asyncio.sleep(0.001)
            return [-item for item in items]

        @batched(batch_size=4, timeout=0.01)
        def g(items):
            return [-item for item in items]

        class OwnTask(asyncio.Task):
            pass

        def old_factory(loop, coroutine):
            return OwnTask(coroutine, loop=loop)

        def factory(loop, coroutine, **options):
            return OwnTask(coroutine, loop=loop, **options)

        async def main(factory):
            asyncio.get_running_loop().set_task_factory(factory)
            for call in (f, f.submit, g.aio):
                assert await asyncio.gather(*map(call, range(10))) == [-item for item in range(10)]
            assert [result async for result in f.map(range(10))] == [-item for item in range(10)]
            async def items():
                for item in range(10):
                    yield item
            assert [result async for result in f.map(items())] == [-item for item in range(10)]
            futures = [f.submit(1), f.submit(2)]
            futures[0].cancel()
            assert await futures[1] == -2

        def factory_of_contexts(loop, coroutine, context=None):
            return OwnTask(coroutine, loop=loop, context=context)

        eager = getattr(asyncio, "eager_task_factory", None)
        factories = [None, factory]
        if "{loop}" == "asyncio":  # uvloop itself passes to factories what these do not take
            factories += old_factory, factory_of_contexts, eager
        for each in factories:
            with asyncio.Runner(loop_factory=new_event_loop, debug=True) as runner:
                runner.run(main(each))
    """
    run_script(script, "-X", "dev", "-W", "error")


def test_task_of_a_batch_is_not_kept_when_it_has_ended() -> None:
    async def main() -> None:
        future = f.submit(1)
        await settle()
        ours = weakref.ref(our_tasks()[0])
        await gated.go_on()
        assert await future == -1
        gc.collect()
        assert ours() is None

    gated = AsyncGated()
    f = batched(batch_size=1)(gated)
    run(main())
