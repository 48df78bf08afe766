"""The class form: the interface of the batch processor this library grew from."""

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from ._decorator import Blocking, drop
from ._options import Options
from ._threads import ThreadEngine
from ._typing import SizedIterable

R = TypeVar("R")


class BatchProcessor(Blocking, Generic[R]):
    """Gathers requests from any number of threads and answers them by a call of `process()`, which you override.

    A new program is better served by `batched`, which takes any item, not only keywords, and keeps the types.

    Args:
        batch_size: Most requests in one call of `process()`, at least 1.
        timeout: Longest time in seconds that the oldest request waits; 0 means no wait, None means until the batch is
            full, or until `flush()`, `drain()` or `close()`.

    Raises:
        TypeError: `batch_size` is no int, or `timeout` no number.
        ValueError: `batch_size` is below 1, or `timeout` is negative or not finite.
    """

    def __init__(self, batch_size: int, timeout: float | None = 0.0) -> None:
        name = f"{type(self).__name__}.process"
        # Weakly, so that a dropped processor ends at once and not when the garbage collector comes by. Whoever waits
        # for an answer is inside request(), and so holds it.
        reference = weakref.ref(self)

        def process(batch_input: list[dict[str, Any]]) -> object:
            processor = reference()
            if processor is None:
                raise ReferenceError(f"the {name} that was to answer is gone")
            return processor.process(tuple(batch_input))

        options = Options(batch_size, timeout)
        options.check(name)
        self._self_engine = ThreadEngine(process, name, options)
        self._self_engine.awaitable = "asyncio.to_thread(processor.request, ...)"
        weakref.finalize(self, drop, weakref.ref(self._self_engine)).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a buffer of its own: the callers in this one are not its callers."""
        options = self._self_engine.options
        return {**self.__dict__, "_self_engine": (options.batch_size, options.timeout)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        BatchProcessor.__init__(self, *state.pop("_self_engine"))
        self.__dict__.update(state)

    def process(
        self, batch_input: tuple[dict[str, Any], ...]
    ) -> SizedIterable[R | Exception] | Iterator[R | Exception]:
        """Answer a batch: n dictionaries of keywords in, n results out, in the same order. To be overridden.

        An exception among the results is raised at its own caller.
        """
        raise NotImplementedError(f"{type(self).__name__} must override process(batch_input)")

    def request(self, **input: object) -> R:  # noqa: A002 - the name it always had
        """Block until this request is answered, and return its own result. Any thread may call.

        Args:
            **input: What `process()` finds in its dictionary for this request.

        Returns:
            The result of `process()` at the place of this request.

        Raises:
            Exception: What `process()` raised, or returned for this request; each caller gets its own copy.
            BatchError: `process()` raised what is no `Exception`: see `BatchError`.
            ResultCountError: `process()` returned more or fewer results than there were requests.
            WaitsForItselfError: This is inside a function, and the answer cannot come before its own batch has ended.
            TypeError: `process()` returned what cannot be results, say None or a string.
            RuntimeError: The flush thread cannot be started.
            ClosedError: `close()` was called before, or the interpreter exits.
        """
        return self._self_engine.call(input)  # type: ignore[no-any-return]
