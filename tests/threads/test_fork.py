"""A forked child starts clean: with no items, figures or threads of its parent, and none of its locks held.

What waited or ran at the fork is answered once, in the parent.
"""

import pytest

from ..tools import run_forking

pytestmark = pytest.mark.thread_unsafe(reason="programs of their own")


def test_forked_child_starts_clean() -> None:
    run_forking("""
        parent, entered, let_on = os.getpid(), threading.Event(), threading.Event()

        @batched(batch_size=2, timeout=0.01)
        def f(items):
            if os.getpid() == parent:
                entered.set()
                let_on.wait()
            return [(os.getpid(), item) for item in items]

        def child():
            assert f.stats.accepted == 0, f.stats
            assert f(7) == (os.getpid(), 7)
            assert list(f.map(range(5))) == [(os.getpid(), item) for item in range(5)]
            assert f.stats.accepted == 6
            f.close()

        futures = [f.submit(item) for item in range(5)]
        entered.wait()
        forked = fork(child)
        let_on.set()
        wait_for(forked)
        assert [future.result() for future in futures] == [(parent, item) for item in range(5)]
        f.close()
    """)


def test_forked_child_of_a_child_and_of_a_thread_starts_clean() -> None:
    run_forking("""
        import asyncio

        @batched(batch_size=4)
        def f(items):
            return [(os.getpid(), item) for item in items]

        @batched(batch_size=4)
        async def g(items):
            return [await f.aio(item) for item in items]

        def ask(depth):
            assert f(depth) == (os.getpid(), depth)
            assert asyncio.run(g(depth)) == (os.getpid(), depth)
            if depth:
                thread = threading.Thread(target=fork_and_wait, args=(depth - 1,))
                thread.start()
                fork_and_wait(depth - 1)
                thread.join()

        def fork_and_wait(depth):
            try:
                wait_for(fork(lambda: ask(depth)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # also from a thread

        ask(2)
    """)


def test_function_closed_before_a_fork_is_closed_in_the_child_too() -> None:
    run_forking("""
        @batched(batch_size=2)
        def f(items):
            return items

        def child():
            for call in f, f.submit, lambda item: list(f.map([item])):
                try:
                    call(7)
                except ClosedError:
                    pass
                else:
                    raise AssertionError
            assert f.stats.accepted == 0
            assert threading.active_count() == 1

        f.close()
        wait_for(fork(child))
    """)


def test_fork_while_another_thread_holds_a_lock_of_ours_leaves_the_child_a_free_one() -> None:
    run_forking("""
        from tests import inside

        @batched(batch_size=2, timeout=0.01)
        def f(items):
            return [(os.getpid(), item) for item in items]

        def hold():
            with inside.inside_the_lock(f):
                holds.set()
                release.wait()

        def child():
            assert f(7) == (os.getpid(), 7)

        futures = [f.submit(item) for item in range(3)]
        holds, release = threading.Event(), threading.Event()
        threading.Thread(target=hold).start()
        holds.wait()
        forked = fork(child)
        release.set()
        wait_for(forked)
        assert [future.result() for future in futures] == [(os.getpid(), item) for item in range(3)]
        f.close()
    """)


def test_future_of_the_parent_can_be_cancelled_in_a_forked_child_without_its_function() -> None:
    run_forking("""
        import gc

        def child():
            global f
            del f
            gc.collect()
            assert future.cancel()

        f = batched(batch_size=2, timeout=None)(lambda items: items)
        future = f.submit(1)
        wait_for(fork(child))
    """)


# A fork inside the function: the child runs on the forked flush thread alone, and its callers are the parent's.


def test_fork_inside_the_function_lets_the_child_call_another_function() -> None:
    run_forking("""
        @batched(batch_size=2)
        def f(items):
            child = os.fork()
            if not child:
                signal.alarm(100)
                if items == [1]:
                    os._exit(0 if inner(3) == 6 else 1)
                return items  # to nobody
            wait_for(child)
            return items

        @batched(batch_size=2)
        def inner(items):
            return [2 * item for item in items]

        assert inner(1) == 2
        assert f(1) == 1
        assert f(2) == 2
    """)


def test_fork_inside_the_function_answers_no_caller_twice() -> None:
    done = run_forking("""
        begun = threading.Event()

        @batched(batch_size=1)
        def f(items):
            begun.wait()
            child = os.fork()
            if child:
                wait_for(child)
            else:
                signal.alarm(100)
            return items

        future = f.submit(1)
        future.add_done_callback(lambda _: os.write(1, b"answered"))
        begun.set()
        future.result()
        f.close()
    """)
    assert done.stdout == "answered"


def test_batch_that_fails_in_a_forked_child_is_not_isolated_there() -> None:
    run_forking("""
        @batched(batch_size=2, timeout=None, isolate=True)
        def f(items):
            if os.getpid() != parent:
                ran.append(items)
                return items
            child = os.fork()
            if not child:
                signal.alarm(100)
                threading.Thread(target=call_again, args=(threading.current_thread(),)).start()
                raise ValueError
            wait_for(child)
            return items

        def call_again(flush_thread):
            status = 1
            try:
                while flush_thread.ident in sys._current_frames():  # not join(), which since 3.14 waits for ever here
                    threading.Event().wait(0.001)  # by then the child has done all that it does with the batch
                assert list(f.map([5, 6])) == [5, 6]
                assert ran == [[5, 6]], ran
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

        parent, ran = os.getpid(), []
        futures = [f.submit(item) for item in range(2)]
        assert [future.result() for future in futures] == [0, 1]
    """)


# The threads of a child get the identifiers that threads of its parent had.

FORKED_WHILE_A_FUTURE_IS_ANSWERED = """
        added, entered, let_on = threading.Event(), threading.Event(), threading.Event()
        answered = batched(batch_size=1)(lambda items: [added.wait()])
        answered.submit(1).add_done_callback(lambda _: (entered.set(), let_on.wait()))
        added.set()  # else the callback might be called here
        entered.wait()
        forked = fork(child)
        let_on.set()
        wait_for(forked)
"""


def test_flush_thread_of_a_child_is_not_taken_for_one_of_its_parent() -> None:
    run_forking(
        """
        import concurrent.futures

        @batched(batch_size=1)
        def f(items):
            if items[0] == 1:
                concurrent.futures.wait([f.submit(0)])
            return items

        def child():
            assert f(1) == 1
        """
        + FORKED_WHILE_A_FUTURE_IS_ANSWERED
    )


def test_other_thread_of_a_child_is_not_taken_for_a_flush_thread_of_its_parent() -> None:
    """A call that stops an event loop is warned of, but not on a flush thread."""
    run_forking(
        """
        import asyncio, warnings

        f = batched(batch_size=1)(lambda items: items)
        warned = []

        async def call():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                f(0)
            warned.extend(caught)

        def child():
            thread = threading.Thread(target=lambda: asyncio.run(call()))
            thread.start()
            thread.join()
            assert [warning.category for warning in warned] == [RuntimeWarning], warned
        """
        + FORKED_WHILE_A_FUTURE_IS_ANSWERED
    )


def test_future_whose_weight_forked_cannot_be_cancelled_in_its_batch_in_the_child() -> None:
    run_forking("""
        entered, let_on, children = threading.Event(), threading.Event(), []

        def weigh(item):
            children.append(os.fork())  # the child goes on with the call, too
            return 1

        @batched(batch_size=1, weight=weigh, max_weight=1)
        def f(items):
            entered.set()
            let_on.wait()
            return items

        future = f.submit(1)
        entered.wait()
        cancelled = future.cancel()
        let_on.set()
        if children == [0]:
            os._exit(cancelled)
        assert not cancelled
        wait_for(children[0])
        f.close()
    """)
