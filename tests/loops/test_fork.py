"""A forked child of an `async def` function starts clean: with no items and figures, and none of the locks held."""

import pytest

from ..tools import run_forking

pytestmark = [pytest.mark.usefixtures("no_noise"), pytest.mark.thread_unsafe(reason="programs of their own")]


def test_forked_child_starts_clean() -> None:
    run_forking("""
        import asyncio

        @batched(batch_size=2)
        async def f(items):
            return items

        def child():
            assert f.stats.accepted == 0
            assert asyncio.run(f(5)) == 5
            assert f.stats.accepted == 1

        assert asyncio.run(f(0)) == 0
        wait_for(fork(child))
    """)


def test_fork_inside_the_function_leaves_the_figures_of_both_right() -> None:
    run_forking("""
        import asyncio

        @batched(batch_size=2)
        async def forking(items):
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            child = os.fork()
            if not child and sys.version_info >= (3, 14):  # there a child knows nothing of the loop that it is in
                asyncio._set_running_loop(loop)
                asyncio.tasks._enter_task(loop, task)
            return [child]

        child = asyncio.run(forking(1))
        if not child:
            signal.alarm(100)
            os._exit(0 if (forking.stats.in_flight, forking.stats.running) == (0, 0) else 1)
        assert (forking.stats.in_flight, forking.stats.running) == (0, 0)
        wait_for(child)
    """)


def test_fork_while_another_thread_holds_a_lock_of_ours_leaves_the_child_a_free_one() -> None:
    run_forking("""
        import asyncio
        from tests import inside

        @batched(batch_size=2)
        async def f(items):
            return items

        def hold():
            with inside.inside_the_lock(f):
                held.set()
                release.wait()

        def child():
            assert asyncio.run(f(1)) == 1

        held, release = threading.Event(), threading.Event()
        threading.Thread(target=hold).start()
        held.wait()
        forked = fork(child)
        release.set()
        wait_for(forked)
    """)


def test_call_that_leaves_in_a_forked_child_is_not_computed_there() -> None:
    """Nor when the time comes at which it would have been due."""
    run_forking("""
        import asyncio

        @batched(batch_size=2, timeout=1.0)
        async def f(items):
            ran.append(items)
            return items

        async def turn():
            for _ in range(20):
                await asyncio.sleep(0)

        def child():
            global now
            task.cancel()
            loop.run_until_complete(turn())
            now += 10.0
            loop.run_until_complete(turn())
            f.flush()
            loop.run_until_complete(turn())
            assert task.cancelled()
            assert not ran, ran

        ran, now = [], 1000.0
        loop = asyncio.new_event_loop()
        loop.time = lambda: now
        task = loop.create_task(f(1))
        loop.run_until_complete(turn())
        wait_for(fork(child))
        f.flush()
        assert loop.run_until_complete(task) == 1
        loop.close()
    """)
