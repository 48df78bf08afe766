"""What was asked for?

The options of a decorated function, and the checks that refuse wrong ones by name.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import Any, NamedTuple

from ._errors import BufferFullError
from ._stats import BatchReport

# Stands for an item that is not passed by position: it came by name, or has a default. Else Python is to complain, of
# the user's own function.
MISSING: Any = object()
NO_CONSTANTS: Mapping[str, Any] = MappingProxyType({})


def given(item: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the positional arguments of a call, of which `item` may be MISSING."""
    return args if item is MISSING else (item, *args)


class Takes(NamedTuple):
    """What the function takes.

    `columns` lists, each of one entry per item, and perhaps `constants` beside them, of which those that are `unnamed`
    must be passed by position; it has their defaults. What a call passes becomes the item, which is a tuple if there
    are several columns, and the constants by `bind(*args, **kwargs)`, which may raise a TypeError. It is not asked
    where the call is `plain`: one positional argument, which is the item. What else takes the same arguments is made
    by `define(body, doc)(use)`.
    """

    columns: int
    constants: bool
    plain: bool
    unnamed: Mapping[str, Any]
    bind: Callable[..., tuple[Any, Mapping[str, Any]]]
    define: Callable[..., Callable[[Any], Callable[..., Any]]]


@dataclass(slots=True)
class Options:
    """What `batched` was asked for; see there. `batch_size` and `timeout` may change while the function is in use."""

    batch_size: int
    timeout: float | None = 0.0
    weight: Callable[..., float] | None = None
    max_weight: float | None = None
    group_by: Callable[..., Hashable] | None = None
    dedupe: bool = False
    isolate: bool | type[Exception] | tuple[type[Exception], ...] = False
    concurrency: int = 1
    max_pending: int | None = None
    on_batch: Callable[[BatchReport], object] | None = None

    def check(self, name: str) -> None:
        """Raise what says why, if these cannot be the options of the function of that name."""
        check_count(name, "batch_size", self.batch_size)
        self.timeout = check_timeout(name, "timeout", self.timeout)
        check_count(name, "concurrency", self.concurrency)
        check_count(name, "max_pending", 1 if self.max_pending is None else self.max_pending)
        for option in ("weight", "group_by", "on_batch"):
            function = getattr(self, option)
            awaited = iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)
            if function is not None and (not callable(function) or awaited):
                raise TypeError(f"{name}(): {option} must be a function, and no coroutine function, got {function!r}")
        if type(self.dedupe) is not bool:
            raise TypeError(f"{name}(): dedupe must be True or False, got {self.dedupe!r}")
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in self.isolated):
            must = "True, False, a type of Exception, or a tuple of such types"
            raise TypeError(f"{name}(): isolate must be {must}, got {self.isolate!r}")
        if (self.weight is None) != (self.max_weight is None):
            one, other = ("max_weight", "weight") if self.weight is None else ("weight", "max_weight")
            raise TypeError(f"{name}(): {one} needs {other}: what an item weighs, and the most that a batch may weigh")
        if self.max_weight is not None:
            if not _is_number(self.max_weight):
                raise TypeError(f"{name}(): max_weight must be a number, got {self.max_weight!r}")
            self.max_weight = _as_float(self.max_weight)
            if not 0 < self.max_weight < math.inf:
                raise ValueError(f"{name}(): max_weight must be above 0 and finite, got {self.max_weight:g}")

    def full_error(self, name: str) -> BufferFullError:
        """Return the error of a call that finds `max_pending` items waiting."""
        return BufferFullError(f"{name}() is full: max_pending={self.max_pending} items wait")

    @property
    def isolated(self) -> tuple[Any, ...]:
        """Which types of errors let a batch be run again in halves."""
        if isinstance(self.isolate, tuple):
            return self.isolate
        return (Exception if self.isolate is True else self.isolate,) if self.isolate is not False else ()

    @property
    def fills_by_groups(self) -> bool:
        """Whether the items that a map reads ahead, for two batches, may make none due: of many groups, or equal."""
        return self.timeout is None and (self.group_by is not None or self.dedupe)

    @property
    def ask_items(self) -> bool:
        """Whether there is something to be found out of each item before it waits."""
        return self.weight is not None or self.group_by is not None or self.dedupe or self.on_batch is not None

    def ask(self, name: str, call: Any, takes: Takes | None, constants: Mapping[str, Any]) -> None:
        """Find out what there is to know of a call's item. Calls functions of the user's.

        Raises whatever these raise: nothing is known of the call yet, so only its own caller hears of it.
        """
        item, several = call.item, takes is not None and takes.columns > 1
        call.weight = 0.0
        if self.weight is not None:
            weight = self.weight(*item) if several else self.weight(item)
            if type(weight) not in (float, int) and not _is_number(weight):
                raise TypeError(f"{name}(): weight must return a number, got {type(weight).__name__}")
            call.weight = _as_float(weight)
            if not 0 <= call.weight < math.inf:
                raise ValueError(f"{name}(): weight must return at least 0 and a finite number, got {call.weight:g}")
        if self.on_batch is not None:
            call.context = copy_context()
        # Each key is in a frozenset, as that asks it for its hash once, here, and remembers it. With types, since 1 and
        # True are equal, but not the same to the function.
        if self.dedupe:
            kind = tuple(map(type, item)) if several else type(item)
            call.item_key = _key(name, "dedupe needs items that are hashable", (kind, item))
        call.key = by = None
        if self.group_by is not None:
            by = self.group_by(*item) if several else self.group_by(item)
            call.key = _key(name, "group_by must return something hashable", by)
        if takes is not None and takes.constants:
            try:
                call.key = frozenset(((by, tuple(constants.items()), tuple(map(type, constants.values()))),))
            except TypeError:
                for constant, value in constants.items():
                    _key(name, f"{constant} must be hashable, since only calls with an equal one share a batch", value)
                raise


def label_of(key: Any, *, constants: bool) -> Hashable:
    """Return what reports call the group of that key."""
    by: Any = None if key is None else next(iter(key))
    return (by[0], *dict(by[1]).values()) if constants else by


def constants_of(key: Any) -> dict[str, Any]:
    """Return the keyword arguments of the function for the items of the group of that key."""
    ((_, named, _),) = key
    return dict(named)


def _key(name: str, rule: str, value: Any) -> frozenset[Any]:
    try:
        return frozenset((value,))
    except TypeError as error:
        raise TypeError(f"{name}(): {rule}: {error}") from error


def _is_number(value: object) -> bool:
    # Whatever converts itself (Decimal, the scalars of numpy), but neither a truth value nor a text.
    return hasattr(type(value), "__float__") and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_count(name: str, option: str, value: int) -> int:
    """Return `value` if it can be that option of the function of that name, else raise what says why not."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}(): {option} must be an int of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}(): {option} must be at least 1, got {value}")
    return value


def check_timeout(name: str, option: str, value: float | None) -> float | None:
    """Return `value` in seconds if it can be the timeout of the function of that name, else raise what says why not."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}(): {option} must be a number of seconds or None, got {value!r}")
    if not 0 <= _as_float(value) < math.inf:
        raise ValueError(f"{name}(): {option} must be at least 0 and finite (None waits without end), got {value}")
    return float(value)


# Of what may change while the function is in use.
CHECKS: Mapping[str, Callable[[str, str, Any], Any]] = {"batch_size": check_count, "timeout": check_timeout}
