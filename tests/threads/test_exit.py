"""The end of the program answers what was accepted, however it ends, and refuses what comes after that.

Each test is a program of its own. What it prints is what was answered.
"""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..tools import HAS_GIL, run_script

pytestmark = pytest.mark.thread_unsafe(reason="programs of their own")

# Programs that wait for three answers, each in a way of its own, and print them.
CALLERS = {
    "submit": "[function.submit(n).add_done_callback(lambda future: show(future.result())) for n in range(3)]",
    "call": "[Thread(target=lambda n=n: show(function(n))).start() for n in range(3)]",
    "call of a daemon": "[Thread(target=lambda n=n: show(function(n)), daemon=True).start() for n in range(3)]",
    "map": "Thread(target=lambda: [show(result) for result in function.map(range(3))]).start()",
    "aio": """
async def main():
    for result in await asyncio.gather(*map(function.aio, range(3))):
        show(result)
Thread(target=lambda: asyncio.run(main())).start()""",
    "async def": """
@batched(batch_size=3)
async def outer(items):
    return await asyncio.gather(*map(function.aio, items))
async def main():
    for result in await asyncio.gather(*map(outer, range(3))):
        show(result)
Thread(target=lambda: asyncio.run(main())).start()""",
}
ENDINGS = {
    "return": ("", 0),
    "sys.exit": ("sys.exit(0)", 0),
    "an error": ("raise ValueError", 1),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
}


# What was accepted is answered


@pytest.mark.parametrize("state", ["waiting", "running"])
@pytest.mark.parametrize("caller", CALLERS)
def test_exit_answers_what_was_accepted_however_the_program_ends(caller: str, state: str) -> None:
    with ThreadPoolExecutor(len(ENDINGS)) as beside:  # they only start, which takes two processors half as long
        ended = {ending: beside.submit(_answers_all, caller, state, *how) for ending, how in ENDINGS.items()}
    assert {ending: done.exception() for ending, done in ended.items()} == dict.fromkeys(ENDINGS)


def _answers_all(caller: str, state: str, end: str, status: int) -> None:
    done = run_script(
        f"""
import asyncio, signal, sys, threading
from threading import Event, Thread
from batchify import batched
sys.excepthook = lambda *error: None
def show(result): sys.stdout.write(f"{{result}}\\n")  # print() writes in two steps, between which others may write
entered, ended = Event(), Event()
threading._register_atexit(ended.set)  # before ours, as it is registered later

@batched(batch_size=3 if {state == "running"} else 4, timeout=None)
def function(items):
    entered.set()
    if {state == "running"}:
        ended.wait()
    return items

function.timeout = None if {state == "waiting"} else 0.0
{CALLERS[caller]}
while function.stats.accepted < 3:
    pass
if {state == "running"}:
    entered.wait()
{end}
""",
        status=status,
    )
    if caller != "call of a daemon":  # answered as well, but it may be stopped before it has printed
        assert sorted(done.stdout.split()) == ["0", "1", "2"]


def test_exit_answers_what_a_dropped_function_accepted() -> None:
    done = run_script("""if True:
        import gc
        from batchify import batched

        def make():
            def function(items):
                return [f is None or item for item in items]
            f = batched(batch_size=9, timeout=None)(function)
            f.submit(7).add_done_callback(lambda future: print(future.result()))

        make()
        gc.collect()
    """)
    assert done.stdout.split() == ["7"]


def test_exit_answers_a_running_batch_of_a_dropped_function() -> None:
    done = run_script("""if True:
        import threading
        from batchify import batched

        ended = threading.Event()
        threading._register_atexit(ended.set)  # before ours, as it is registered later

        def function(items):
            ended.wait()
            return items

        f = batched(batch_size=9, timeout=None)(function)
        f.submit(7).add_done_callback(lambda future: print(future.result()))
        del f
    """)
    assert done.stdout.split() == ["7"]


def test_exit_answers_a_function_that_then_calls_another_one_for_the_first_time() -> None:
    done = run_script("""if True:
        from batchify import batched

        @batched(batch_size=100, timeout=None)
        def function(items):
            return [helper(item) for item in items]

        @batched(batch_size=100)
        def helper(items):
            return items

        for number in range(3):
            function.submit(number).add_done_callback(lambda future: print(future.result()))
    """)
    assert done.stdout.split() == ["0", "1", "2"]


def test_exit_leaves_a_function_that_another_one_calls_on_its_own_thread() -> None:
    done = run_script("""if True:
        import threading
        from batchify import batched

        @batched(batch_size=1)
        def inner(items):
            return [threading.current_thread().name]

        @batched(batch_size=2, timeout=None)
        def outer(items):
            return [inner(item) for item in items]

        inner(0)
        outer.submit(1).add_done_callback(lambda future: print(future.result()))
    """)
    assert done.stdout == "batchify flush thread of inner()\n"


def test_exit_is_not_held_up_by_an_idle_function() -> None:
    run_script("from batchify import batched; f = batched(batch_size=2)(lambda xs: xs); f(1)")


# Calls that come when the main thread has ended


def test_threads_that_outlive_the_main_thread_are_answered() -> None:
    done = run_script("""if True:
        import threading
        from batchify import batched
        function = batched(batch_size=2, timeout=0.001)(lambda items: items)
        unused = batched(batch_size=2, timeout=0.001)(lambda items: items)
        function(0)

        def work():
            threading.main_thread().join()
            print(sum(function(number) for number in range(40)))
            try:
                print(unused(1))
            except RuntimeError:  # from 3.12 on, no thread can be started then
                print(1)

        threading.Thread(target=work).start()
    """)
    assert done.stdout.split() == ["780", "1"]


def test_atexit_functions_are_answered_before_ours_and_refused_after() -> None:
    done = run_script("""if True:
        import atexit
        def late(which):
            try:
                print(which(1))
            except RuntimeError as error:
                print(type(error).__name__)
        atexit.register(lambda: late(used))
        from batchify import batched
        used = batched(batch_size=1)(lambda items: items)
        unused = batched(batch_size=1)(lambda items: items)
        used(0)
        atexit.register(lambda: late(used))
        atexit.register(lambda: late(unused))
    """)
    unused, used_before_ours, used_after_ours = done.stdout.split()
    assert unused in ("1", "RuntimeError")
    assert used_before_ours == "1"
    assert used_after_ours == "ClosedError"


def test_function_that_is_made_after_our_atexit_function_refuses() -> None:
    done = run_script("""if True:
        import atexit

        def late():
            try:
                print(batched(batch_size=1)(lambda items: items)(1))
            except RuntimeError as error:
                print(error)

        atexit.register(late)
        from batchify import batched
    """)
    assert done.stdout == "<lambda>() is closed (the interpreter is exiting)\n"


@pytest.mark.parametrize("where", ["a global", "a module", "a cycle", "a thread"])
def test_finalizers_that_call_at_exit_are_refused(where: str) -> None:
    place = {
        "a global": "late = Late()",
        "a module": "import builtins; builtins.late = Late()",
        "a cycle": "late = Late(); late.itself = late; del late",
        "a thread": "import threading; place = threading.local(); place.late = Late()",
    }
    done = run_script(f"""if True:
        from batchify import batched
        used = batched(batch_size=2)(lambda items: items)
        unused = batched(batch_size=2)(lambda items: items)
        used(0)

        class Late:
            def __del__(self, print=print, RuntimeError={"RuntimeError" if HAS_GIL else "Exception"}):
                for f in self.used, self.unused:
                    for call in f, f.submit, lambda item: list(f.map([item])):
                        try:
                            call(1)
                        except RuntimeError as error:
                            print(type(error).__name__, error)
            used, unused = used, unused

        {place[where]}
    """)
    said = done.stdout.splitlines()
    assert len(said) == 6
    # Without a GIL some finalizers run when modules have been emptied, and so have what ClosedError was.
    assert set(said) == {"ClosedError <lambda>() is closed (the interpreter is exiting)"} or not HAS_GIL


def test_exit_finds_all_answered_of_a_function_that_returns_futures_in_a_with_block() -> None:
    done = run_script("""if True:
        from concurrent.futures import ThreadPoolExecutor
        from batchify import batched
        pool = ThreadPoolExecutor()
        f = batched(batch_size=9, timeout=None)(lambda items: pool.submit(list, items))
        with f:
            f.submit(1).add_done_callback(lambda future: print("answered with", future.result()))
    """)
    assert done.stdout == "answered with 1\n"
