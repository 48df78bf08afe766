"""Each library behind one face.

Three ways to call: `threads` that block on a `def` function; tasks that await an `async def` function (`asyncio`); and
tasks that await a `def` function, which runs in a thread (`aio`). What is not installed raises ImportError when its
adapter is loaded.

Each gets the same batch size and the same timeout, as far as it knows one. They differ in what they promise; where that
decides a figure, the table says so.
"""

import asyncio
import itertools
import queue
import threading
import time
from _thread import allocate_lock
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any, NamedTuple

from batchify import batched

Function = Callable[[list[int]], list[int]]
Caller = Callable[[int], int]
Call = Callable[[int], Awaitable[int]]
Entry = tuple[int, "asyncio.Future[int]"]


class Unsupported(Exception):  # noqa: N818
    """Raised when a library cannot do what is asked."""


# Callers are threads


class ThreadScheme:
    """Something to call with an item, from any thread."""

    close_last = True  # what is closed before its callers have their answers leaves them waiting for ever

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        self.function, self.batch_size, self.timeout = function, batch_size, timeout

    def caller(self) -> Caller:
        """Return what one thread calls."""
        raise NotImplementedError

    def bulk(self, items: list[int]) -> list[int]:
        """Pass many items at once, by the best way that it has; here by 64 threads."""
        with ThreadPoolExecutor(64) as pool:
            return list(pool.map(self.caller(), items))

    def close(self) -> None:
        pass


class Floor(ThreadScheme):
    """What cannot be avoided: a hand-over to a thread and back."""

    close_last = False

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        super().__init__(function, batch_size, timeout)
        self.cells: list[list[Any]] = []
        self.waiting: list[list[Any]] = []
        self.stopped = False
        self.bell = allocate_lock()
        self.bell.acquire()
        self.server = threading.Thread(target=self.serve, daemon=True)
        self.server.start()

    def serve(self) -> None:
        waiting, batch_size, function = self.waiting, self.batch_size, self.function
        while True:
            while len(waiting) < batch_size:
                self.bell.acquire()
                if self.stopped:
                    return
            batch = waiting[:batch_size]
            del waiting[:batch_size]
            for cell, result in zip(batch, function([cell[1] for cell in batch]), strict=True):
                cell[1] = result
                with suppress(RuntimeError):  # close() was faster
                    cell[0].release()

    def caller(self) -> Caller:
        lock = allocate_lock()
        lock.acquire()
        cell: list[Any] = [lock, None]
        self.cells.append(cell)
        waiting, batch_size, bell = self.waiting, self.batch_size, self.bell

        def call(item: int) -> int:
            cell[1] = item
            waiting.append(cell)
            if len(waiting) >= batch_size and bell.locked():
                with suppress(RuntimeError):
                    bell.release()
            lock.acquire()
            result: int = cell[1]
            return result

        return call

    def close(self) -> None:
        self.stopped = True
        for lock in [self.bell, *(cell[0] for cell in self.cells)]:
            if lock.locked():
                lock.release()

    def bulk(self, items: list[int]) -> list[int]:
        slices = range(0, len(items), self.batch_size)
        return [result for start in slices for result in self.function(items[start : start + self.batch_size])]


class Batchify(ThreadScheme):
    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        self.batched = batched(batch_size=batch_size, timeout=timeout)(function)

    def caller(self) -> Caller:
        return self.batched

    def close(self) -> None:
        self.batched.close()

    def bulk(self, items: list[int]) -> list[int]:
        return list(self.batched.map(items))


class BatchifySubmit(Batchify):
    def caller(self) -> Caller:
        submit = self.batched.submit
        return lambda item: submit(item).result()

    def bulk(self, items: list[int]) -> list[int]:
        return [future.result() for future in [self.batched.submit(item) for item in items]]


class Original(ThreadScheme):
    """A waiter runs the batch: the one that fills it, or the first to see that it is late."""

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        super().__init__(function, batch_size, timeout)
        self.condition = threading.Condition()
        self.waiting: list[tuple[int, int]] = []
        self.results: dict[int, int] = {}
        self.numbers = itertools.count()

    def caller(self) -> Caller:
        return self.call

    def call(self, item: int) -> int:
        with self.condition:
            number = next(self.numbers)
            self.waiting.append((number, item))
            if len(self.waiting) < self.batch_size:
                self.condition.wait_for(lambda: number in self.results, self.timeout)
            if not self.waiting or number < self.waiting[0][0]:  # another caller has taken it
                self.condition.wait_for(lambda: number in self.results)
            if number in self.results:
                return self.results.pop(number)
            batch, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        results = self.function([item for _, item in batch])
        with self.condition:
            self.results.update((number, result) for (number, _), result in zip(batch, results, strict=True))
            self.condition.notify_all()
            return self.results.pop(number)

    def close(self) -> None:
        with self.condition:
            for number, item in self.waiting:
                self.results[number] = item
            self.condition.notify_all()


class Queue(ThreadScheme):
    """A queue, a future per item, and a thread that collects."""

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        super().__init__(function, batch_size, timeout)
        self.queue: queue.Queue[tuple[int, Future[int]] | None] = queue.Queue()
        self.collector = threading.Thread(target=self.collect, daemon=True)
        self.collector.start()

    def collect(self) -> None:
        entry = self.queue.get()
        while entry is not None:
            batch = [entry]
            deadline = time.monotonic() + self.timeout
            while len(batch) < self.batch_size:
                try:
                    entry = self.queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if entry is None:
                    break
                batch.append(entry)
            for (_, future), result in zip(batch, self.function([item for item, _ in batch]), strict=True):
                future.set_result(result)
            if entry is not None:
                entry = self.queue.get()

    def caller(self) -> Caller:
        return self.call

    def submit(self, item: int) -> Future[int]:
        future: Future[int] = Future()
        self.queue.put((item, future))
        return future

    def call(self, item: int) -> int:
        return self.submit(item).result()

    def close(self) -> None:
        self.queue.put(None)

    def bulk(self, items: list[int]) -> list[int]:
        return [future.result() for future in [self.submit(item) for item in items]]


class NoBatching(ThreadScheme):
    def caller(self) -> Caller:
        return lambda item: self.function([item])[0]

    def bulk(self, items: list[int]) -> list[int]:
        return [self.function([item])[0] for item in items]


class Mixedbread(ThreadScheme):
    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        from batched import dynamically

        self.processor = dynamically(function, batch_size=batch_size, timeout_ms=timeout * 1000)

    def caller(self) -> Caller:
        call: Caller = self.processor
        return call

    def bulk(self, items: list[int]) -> list[int]:
        results: list[int] = self.processor(items)
        return results

    def close(self) -> None:
        self.processor.shutdown()


class ServiceStreamer(ThreadScheme):
    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        from service_streamer import ThreadedStreamer

        self.streamer = ThreadedStreamer(function, batch_size=batch_size, max_latency=timeout)

    def caller(self) -> Caller:
        predict = self.streamer.predict
        return lambda item: predict([item])[0]

    def bulk(self, items: list[int]) -> list[int]:
        results: list[int] = self.streamer.predict(items)
        return results

    def close(self) -> None:
        def end(timeout: float) -> None:  # noqa: ARG001
            raise SystemExit

        self.streamer.destroy_workers()
        self.streamer._recv_response = end  # its other thread would go on for ever, and disturb what is measured next


# Callers are tasks


class LoopScheme:
    """Something to await per item. Made on the event loop that uses it."""

    on_the_loop = True  # the function is a coroutine function

    def __init__(self, function: Callable[[list[int]], Any], batch_size: int, timeout: float) -> None:
        self.function, self.batch_size, self.timeout = function, batch_size, timeout
        self.call: Call = self.start()

    def start(self) -> Call:
        raise NotImplementedError

    async def stop(self) -> None:
        pass

    async def bulk(self, items: list[int]) -> list[int]:
        """Pass many items at once, by the best way that it has; here by a task for each."""
        return list(await asyncio.gather(*map(self.call, items)))


class LoopFloor(LoopScheme):
    """What cannot be avoided: a future per item, and a task per batch."""

    def start(self) -> Call:
        self.waiting: list[Entry] = []
        self.tasks: set[asyncio.Task[None]] = set()
        return self.wait

    def submit(self, item: int) -> "asyncio.Future[int]":
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if len(self.waiting) >= self.batch_size:
            batch, self.waiting = self.waiting, []
            task = asyncio.create_task(self.answer(batch))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return future

    async def wait(self, item: int) -> int:
        return await self.submit(item)

    async def answer(self, batch: list[Entry]) -> None:
        results = await self.function([item for item, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    async def bulk(self, items: list[int]) -> list[int]:
        results: list[int] = []
        for start in range(0, len(items), self.batch_size):
            results += await self.function(items[start : start + self.batch_size])
        return results


class BatchifyAwait(LoopScheme):
    def start(self) -> Call:
        self.batched: Any = batched(batch_size=self.batch_size, timeout=self.timeout)(self.function)
        call: Call = self.batched
        return call

    async def bulk(self, items: list[int]) -> list[int]:
        return [result async for result in self.batched.map(items)]


class BatchifyLoopSubmit(LoopScheme):
    def start(self) -> Call:
        function: Any = batched(batch_size=self.batch_size, timeout=self.timeout)(self.function)
        call: Call = function.submit
        return call


class AwaitDirectly(LoopScheme):
    def start(self) -> Call:
        return self.one

    async def one(self, item: int) -> int:
        results: list[int] = await self.function([item])
        return results[0]


class LoopQueue(LoopScheme):
    """The usual home-made one: a queue, a future per item, and a task that collects."""

    def start(self) -> Call:
        self.queue: asyncio.Queue[Entry] = asyncio.Queue()
        self.collector = asyncio.create_task(self.collect())
        return self.one

    async def one(self, item: int) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((item, future))
        return await future

    async def collect(self) -> None:
        while True:
            batch = [await self.queue.get()]
            with suppress(TimeoutError):
                async with asyncio.timeout(self.timeout):
                    while len(batch) < self.batch_size:
                        batch.append(await self.queue.get())
            for (_, future), result in zip(batch, await self.function([item for item, _ in batch]), strict=True):
                future.set_result(result)

    async def stop(self) -> None:
        self.collector.cancel()


class MixedbreadAio(LoopScheme):
    def start(self) -> Call:
        from batched import aio

        self.processor = aio.dynamically(self.function, batch_size=self.batch_size, timeout_ms=self.timeout * 1000)
        call: Call = self.processor
        return call

    async def bulk(self, items: list[int]) -> list[int]:
        results: list[int] = await self.processor(items)
        return results


class AsyncBatcher(LoopScheme):
    def start(self) -> Call:
        from async_batcher.batcher import AsyncBatcher as Base

        if self.batch_size == 1:
            raise Unsupported("takes no batch size of 1")
        function = self.function

        async def process(_: object, batch: list[int]) -> Any:
            return await function(batch)

        def process_in_thread(_: object, batch: list[int]) -> Any:
            return function(batch)

        kind: Any = type("Doubler", (Base,), {"process_batch": process if self.on_the_loop else process_in_thread})
        self.batcher = kind(max_batch_size=self.batch_size, max_queue_time=self.timeout)
        call: Call = self.batcher.process
        return call

    async def stop(self) -> None:
        await self.batcher.stop(force=True)


class AioDataLoader(LoopScheme):
    def start(self) -> Call:
        from aiodataloader import DataLoader

        call: Call = DataLoader(self.function, max_batch_size=self.batch_size, cache=False).load
        return call


class Strawberry(LoopScheme):
    def start(self) -> Call:
        from strawberry.dataloader import DataLoader

        call: Call = DataLoader(self.function, max_batch_size=self.batch_size, cache=False).load
        return call


class Dike(LoopScheme):
    def start(self) -> Call:
        import dike

        self.batched: Any = dike.batch(target_batch_size=self.batch_size, max_waiting_time=self.timeout)(self.function)
        return self.one

    async def one(self, item: int) -> int:
        results: list[int] = await self.batched([item])
        return results[0]


class RayServe(LoopScheme):
    """`serve.batch` without a server: it only asks its replica who it is and how many requests it admits."""

    def start(self) -> Call:
        from ray import serve

        config = SimpleNamespace(max_ongoing_requests=1_000_000)
        serve.context._INTERNAL_REPLICA_CONTEXT = SimpleNamespace(
            app_name="", deployment="", replica_tag="", _deployment_config=config
        )
        call: Call = serve.batch(max_batch_size=self.batch_size, batch_wait_timeout_s=self.timeout)(self.function)
        return call


class BentoML(LoopScheme):
    def start(self) -> Call:
        from bentoml._internal.marshal.dispatcher import CorkDispatcher

        # 60 s is its own default. It has no timeout: it learns how long to wait.
        self.dispatcher: Any = CorkDispatcher(
            60_000, self.batch_size, fallback=lambda: None, get_batch_size=lambda _: 1
        )
        call: Call = self.dispatcher(self.function)
        return call

    async def stop(self) -> None:
        self.dispatcher.shutdown()


# Callers are tasks, and the function is one that blocks


class AioFloor(LoopScheme):
    """What cannot be avoided: a future per item, and a message home per batch."""

    on_the_loop = False

    def start(self) -> Call:
        self.loop = asyncio.get_running_loop()
        self.waiting: list[Entry] = []
        self.stopped = False
        self.bell = allocate_lock()
        self.bell.acquire()
        threading.Thread(target=self.serve, daemon=True).start()
        return self.wait

    async def wait(self, item: int) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if len(self.waiting) >= self.batch_size and self.bell.locked():
            self.ring()
        return await future

    def serve(self) -> None:
        while True:
            while len(self.waiting) < self.batch_size:
                self.bell.acquire()
                if self.stopped:
                    return
            batch = self.waiting[: self.batch_size]
            del self.waiting[: self.batch_size]
            self.loop.call_soon_threadsafe(self.answer, batch, self.function([item for item, _ in batch]))

    def ring(self) -> None:
        with suppress(RuntimeError):  # the thread was faster
            self.bell.release()

    @staticmethod
    def answer(batch: list[Entry], results: list[int]) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    async def stop(self) -> None:
        self.stopped = True
        self.ring()

    async def bulk(self, items: list[int]) -> list[int]:
        results: list[int] = []
        for start in range(0, len(items), self.batch_size):
            results += await asyncio.to_thread(self.function, items[start : start + self.batch_size])
        return results


class BatchifyAio(LoopScheme):
    on_the_loop = False

    def start(self) -> Call:
        function: Callable[[list[int]], list[int]] = self.function
        self.batched = batched(batch_size=self.batch_size, timeout=self.timeout)(function)
        return self.batched.aio

    async def stop(self) -> None:
        await asyncio.to_thread(self.batched.close)


class BatchifyWrapFuture(BatchifyAio):
    """A message to the loop per item."""

    def start(self) -> Call:
        super().start()
        return lambda item: asyncio.wrap_future(self.batched.submit(item))


class BatchifyToThread(BatchifyAio):
    """A thread per call: too few to fill a batch, so no item waits for others."""

    def start(self) -> Call:
        self.timeout = 0.0
        super().start()
        return lambda item: asyncio.to_thread(self.batched, item)


class AioToThread(LoopScheme):
    on_the_loop = False

    def start(self) -> Call:
        return self.one

    async def one(self, item: int) -> int:
        results: list[int] = await asyncio.to_thread(self.function, [item])
        return results[0]


class AioQueue(LoopScheme):
    on_the_loop = False

    def start(self) -> Call:
        self.queue = Queue(self.function, self.batch_size, self.timeout)
        return self.one

    async def one(self, item: int) -> int:
        return await asyncio.wrap_future(self.queue.submit(item))

    async def stop(self) -> None:
        self.queue.close()


class MixedbreadAcall(LoopScheme):
    on_the_loop = False

    def start(self) -> Call:
        self.scheme = Mixedbread(self.function, self.batch_size, self.timeout)
        call: Call = self.scheme.processor.acall
        return call

    async def bulk(self, items: list[int]) -> list[int]:
        results: list[int] = await self.scheme.processor.acall(items)
        return results

    async def stop(self) -> None:
        await asyncio.to_thread(self.scheme.close)


class AsyncBatcherInThread(AsyncBatcher):
    on_the_loop = False


class BentoMLInThread(BentoML):
    on_the_loop = False


class Adapter(NamedTuple):
    make: Callable[..., Any]
    imports: str = "batchify"  # without which there is none
    distribution: str = ""


PATHS: dict[str, dict[str, Adapter]] = {
    "threads": {
        "floor": Adapter(Floor),
        "batchify": Adapter(Batchify),
        "batchify submit": Adapter(BatchifySubmit),
        "original": Adapter(Original),
        "queue.Queue": Adapter(Queue),
        "batched": Adapter(Mixedbread, "batched", "batched"),
        "service-streamer": Adapter(ServiceStreamer, "service_streamer", "service-streamer"),
        "no batching": Adapter(NoBatching),
    },
    "asyncio": {
        "floor": Adapter(LoopFloor),
        "batchify": Adapter(BatchifyAwait),
        "batchify submit": Adapter(BatchifyLoopSubmit),
        "asyncio.Queue": Adapter(LoopQueue),
        "batched.aio": Adapter(MixedbreadAio, "batched.aio", "batched"),
        "async-batcher": Adapter(AsyncBatcher, "async_batcher.batcher", "async-batcher"),
        "aiodataloader": Adapter(AioDataLoader, "aiodataloader", "aiodataloader"),
        "strawberry": Adapter(Strawberry, "strawberry.dataloader", "strawberry-graphql"),
        "dike": Adapter(Dike, "dike", "dike"),
        "ray serve.batch": Adapter(RayServe, "ray.serve", "ray"),
        "bentoml": Adapter(BentoML, "bentoml._internal.marshal.dispatcher", "bentoml"),
        "no batching": Adapter(AwaitDirectly),
    },
    "aio": {
        "floor": Adapter(AioFloor),
        "batchify": Adapter(BatchifyAio),
        "queue.Queue": Adapter(AioQueue),
        "batched": Adapter(MixedbreadAcall, "batched", "batched"),
        "async-batcher": Adapter(AsyncBatcherInThread, "async_batcher.batcher", "async-batcher"),
        "bentoml": Adapter(BentoMLInThread, "bentoml._internal.marshal.dispatcher", "bentoml"),
        "no batching": Adapter(AioToThread),
    },
}


def load(path: str, name: str) -> Callable[..., Any]:
    """Import what the adapter needs; return what makes a scheme."""
    adapter = PATHS[path][name]
    import_module(adapter.imports)
    return adapter.make


def versions() -> dict[str, str]:
    """Return which version of each library is installed."""
    found = {}
    for distribution in {each.distribution for adapters in PATHS.values() for each in adapters.values()} - {""}:
        with suppress(PackageNotFoundError):
            found[distribution] = version(distribution)
    return dict(sorted(found.items()))
