"""Each library behind one face.

Three ways to call: `threads` that block on a `def` function; tasks that await an `async def` function (`asyncio`); and
tasks that await a `def` function, which runs in a thread (`aio`). What is not installed raises ImportError when its
adapter is loaded.

Each gets the same batch size and the same timeout, as far as it knows one. They differ in what they promise; where that
decides a figure, the table says so.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any, NamedTuple

from batchify import batched

from . import coroutines, threads
from .coroutines import Call
from .threads import Caller


class Unsupported(Exception):  # noqa: N818
    """Raised when a library cannot do what is asked."""


# Callers are threads


class ThreadScheme(threads.Scheme):
    """What workloads need beside calls."""

    close_last = True  # what is closed before its callers have their answers leaves them waiting for ever

    def bulk(self, items: list[int]) -> list[int]:
        """Pass many items at once, by the best way that it has; here by 64 threads."""
        with ThreadPoolExecutor(64) as pool:
            return list(pool.map(self.caller(), items))

    def close(self) -> None:
        pass


class Floor(threads.Floor, ThreadScheme):
    close_last = False

    def bulk(self, items: list[int]) -> list[int]:
        slices = range(0, len(items), self.batch_size)
        return [result for start in slices for result in self.function(items[start : start + self.batch_size])]


class Batchify(threads.Batchify, ThreadScheme):
    def bulk(self, items: list[int]) -> list[int]:
        return list(self.function.map(items))


class BatchifySubmit(Batchify):
    def caller(self) -> Caller:
        submit = self.function.submit
        return lambda item: submit(item).result()

    def bulk(self, items: list[int]) -> list[int]:
        return [future.result() for future in [self.function.submit(item) for item in items]]


class Original(threads.Original, ThreadScheme):
    pass


class Queue(threads.Queue, ThreadScheme):
    def bulk(self, items: list[int]) -> list[int]:
        return [future.result() for future in [self.submit(item) for item in items]]


class NoBatching(ThreadScheme):
    def __init__(self, function: threads.Function, _: int, __: float) -> None:
        self.function = function

    def caller(self) -> Caller:
        return lambda item: self.function([item])[0]

    def bulk(self, items: list[int]) -> list[int]:
        return [self.function([item])[0] for item in items]


class Mixedbread(ThreadScheme):
    def __init__(self, function: threads.Function, batch_size: int, timeout: float) -> None:
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
    def __init__(self, function: threads.Function, batch_size: int, timeout: float) -> None:
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


class LoopScheme(coroutines.Scheme):
    async def bulk(self, items: list[int]) -> list[int]:
        """Pass many items at once, by the best way that it has; here by a task for each."""
        return list(await asyncio.gather(*map(self.call, items)))


class LoopFloor(coroutines.CoroutineFloor, LoopScheme):
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


class BatchifyLoopSubmit(coroutines.Submit, LoopScheme):
    pass


class AwaitDirectly(LoopScheme):
    def start(self) -> Call:
        return self.one

    async def one(self, item: int) -> int:
        results: list[int] = await self.function([item])
        return results[0]


class LoopQueue(LoopScheme):
    """The usual home-made one: a queue, a future per item, and a task that collects."""

    def start(self) -> Call:
        self.queue: asyncio.Queue[coroutines.Entry] = asyncio.Queue()
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


class AioFloor(coroutines.ThreadFloor, LoopScheme):
    async def bulk(self, items: list[int]) -> list[int]:
        results: list[int] = []
        for start in range(0, len(items), self.batch_size):
            results += await asyncio.to_thread(self.function, items[start : start + self.batch_size])
        return results


class BatchifyAio(coroutines.Aio, LoopScheme):
    pass


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
        self.queue = threads.Queue(self.function, self.batch_size, self.timeout)
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
