"""Dynamic batching: write a function for a list, call it with one item, from any number of threads and event loops."""

from ._decorator import BatchedCoroutineFunction, BatchedFunction, BatchedMethod, batched
from ._errors import (
    BatchError,
    BufferFullError,
    ClosedError,
    MissingResultError,
    ResultCountError,
    WaitsForItselfError,
)
from ._processor import BatchProcessor
from ._stats import BatchReport, Stats

__all__ = [
    "BatchError",
    "BatchProcessor",
    "BatchReport",
    "BatchedCoroutineFunction",
    "BatchedFunction",
    "BatchedMethod",
    "BufferFullError",
    "ClosedError",
    "MissingResultError",
    "ResultCountError",
    "Stats",
    "WaitsForItselfError",
    "batched",
]
