"""Pickled and copied are the function and its options: no buffer, no lock, no thread."""

import asyncio
import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import cloudpickle
import pytest

import batchify

from .. import inside
from ..tools import run_script

batched: Callable[..., Callable[[Any], Any]] = batchify.batched


@batched(batch_size=2)
def scale(xs: list[int]) -> list[int]:
    return [10 * x for x in xs]


@batched(batch_size=2)
async def fetch(xs: list[int]) -> list[int]:
    return [10 * x for x in xs]


@batched(
    batch_size=3,
    timeout=1.5,
    weight=lambda x, y: x,
    max_weight=4,
    group_by=lambda x, y: y,
    dedupe=True,
    isolate=True,
    concurrency=2,
    max_pending=9,
    on_batch=lambda report: None,
)
def everything(xs: list[int], ys: list[int], *, model: str = "small") -> list[int]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.bound = batched(batch_size=3)(self.plain)

    def plain(self, xs: list[int]) -> list[int]:
        return [self.factor * x for x in xs]

    scale = batched(batch_size=2)(plain)

    @batched(batch_size=2)
    def times(self, xs: list[int]) -> list[int]:
        return [self.factor * x for x in xs]

    @batched(batch_size=2)
    @classmethod
    def of_class(cls, xs: list[int]) -> list[str]:
        return [f"{cls.__name__} {x}" for x in xs]


class Tenfold:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, xs: list[int]) -> list[int]:
        return [self.factor * x for x in xs]


PICKLERS = pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])


def there_and_back(pickler: Any, value: Any) -> Any:
    return pickle.loads(pickler.dumps(value))


async def awaited(function: Any, item: Any) -> Any:
    return await function(item)


@PICKLERS
def test_importable_function_is_pickled_and_copied_as_itself(pickler: Any) -> None:
    for function in (scale, fetch, everything, Scaler.times):
        assert there_and_back(pickler, function) is function
        assert copy.copy(function) is copy.deepcopy(function) is function
        assert len(pickler.dumps(function)) < (700 if function is everything else 400)


def test_decorating_and_pickling_leave_no_attributes_on_the_function() -> None:
    assert type(scale.__wrapped__) is FunctionType
    assert (scale.__wrapped__.__qualname__, vars(scale.__wrapped__)) == ("scale", {})
    made_anew = there_and_back(cloudpickle, nested(10)[0]).__wrapped__
    assert (made_anew.__name__, vars(made_anew)) == ("count_down", {})


@PICKLERS
def test_pickled_instance_takes_its_decorated_methods_along(pickler: Any) -> None:
    one = Scaler(10)
    assert (one.times(1), one.bound(1)) == (10, 10)
    for other in (there_and_back(pickler, one), copy.deepcopy(one)):
        other.factor = 20
        assert (other.times(1), other.bound(1), one.times(1), one.bound(1)) == (20, 20, 10, 10)
        assert other.times.stats.accepted == other.bound.stats.accepted == 1
        assert (other.bound.batch_size, other.times.batch_size) == (3, 2)


@PICKLERS
def test_pickled_method_takes_its_instance_along(pickler: Any) -> None:
    one = Scaler(10)
    one.times.batch_size = 7
    for times in (there_and_back(pickler, one.times), copy.deepcopy(one.times)):
        assert times(3) == 30
        assert times.stats.accepted == 1
        assert times.__wrapped__.__self__ is not one
    assert copy.copy(one.times) == one.times
    assert one.times.stats.accepted == 0
    assert there_and_back(pickler, Scaler.of_class)(3) == "Scaler 3"


def test_callable_object_is_pickled_with_its_state() -> None:
    function = batched(batch_size=5)(Tenfold(10))
    other = there_and_back(pickle, function)
    assert (other(3), other.batch_size, other.__wrapped__ is function.__wrapped__) == (30, 5, False)
    buffer = io.BytesIO()
    pickle.Pickler(buffer, 2).dump(function)
    assert pickle.loads(buffer.getvalue())(3) == 30


# Options


@PICKLERS
def test_pickle_keeps_batch_size_and_timeout_as_they_were_set(pickler: Any) -> None:
    bound = Scaler(10).bound
    bound.batch_size, bound.timeout = 7, None
    other = there_and_back(pickler, bound)
    assert (other.batch_size, other.timeout) == (7, None)


def test_callable_object_is_pickled_with_its_options() -> None:
    function = batched(batch_size=5, group_by=lambda x: x % 2)(Tenfold(10))
    other = there_and_back(cloudpickle, function)
    group_by: Any = inside.options_of(other).group_by
    assert (other(3), group_by(3)) == (30, 1)


def parity(x: int) -> int:
    return x % 2


def test_importable_option_is_pickled_by_reference() -> None:
    function = batched(batch_size=5, group_by=parity)(lambda xs: xs)
    assert inside.options_of(there_and_back(cloudpickle, function)).group_by is parity


def test_cloudpickle_keeps_all_options_of_a_nested_function() -> None:
    factor = 3
    options: dict[str, Any] = {
        "batch_size": 3,
        "timeout": None,
        "weight": lambda x, y: factor * x,
        "max_weight": 40,
        "group_by": lambda x, y: y,
        "dedupe": True,
        "isolate": True,
        "concurrency": 2,
        "max_pending": 9,
        "on_batch": lambda report: None,
    }

    def sums(xs: list[int], ys: list[int], *, plus: int = 1) -> list[int]:
        return [x + y + plus for x, y in zip(xs, ys, strict=True)]

    class C:
        m = batched(**options)(lambda self, xs, ys, *, plus=1: sums(xs, ys, plus=plus))

    f = batched(**options)(sums)
    f.timeout = 0.0
    other, instance = pickle.loads(cloudpickle.dumps((f, C())))
    again = pickle.loads(cloudpickle.dumps(other))
    for copied in (other, again):
        kept: Any = inside.options_of(copied)
        for option, value in options.items():
            if not callable(value):
                assert getattr(kept, option) == (0.0 if option == "timeout" else value)
        assert (kept.weight(2, 0), kept.group_by(1, 5)) == (6, 5)
        assert kept.on_batch is not None
        with copied:
            assert (copied(1, 2, plus=10), copied(1, 2)) == (13, 4)
    assert f.stats.accepted == 0
    kept = inside.options_of(instance.m)
    assert (kept.weight(2, 0), kept.dedupe, kept.max_pending) == (6, True, 9)
    instance.m.timeout = 0.0
    with instance.m as m:
        assert m(1, 2) == 4


# Nested, in main, in other processes


def nested(factor: int) -> tuple[Any, Any, Any]:
    @batched(batch_size=2, timeout=0.0)
    def count_down(xs: list[int]) -> list[int]:
        return [factor if x == 0 else count_down(x - 1) for x in xs]  # it knows itself

    @batched(batch_size=2)
    async def fetch(xs: list[int]) -> list[int]:
        return [factor * x for x in xs]

    class Local:
        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [factor * x for x in xs]

        @batched(batch_size=2)
        @classmethod
        def of_class(cls, xs: list[int]) -> list[str]:
            return [f"{cls.__name__} {x}" for x in xs]

    return count_down, fetch, Local


def test_cloudpickle_keeps_the_decorator_of_nested_functions() -> None:
    count_down, fetch, _ = nested(10)
    assert count_down(3) == 10
    other = there_and_back(cloudpickle, count_down)
    assert other is not count_down
    assert type(other) is batchify.BatchedFunction
    assert (other(3), other.stats.accepted) == (10, 4)
    assert (other.__qualname__, other.batch_size) == (count_down.__qualname__, 2)
    assert asyncio.run(awaited(there_and_back(cloudpickle, fetch), 3)) == 30
    for function in (count_down, fetch):
        assert copy.deepcopy(function) is function
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(function)


# By value, in another interpreter, where __main__ is another module.
RECEIVER = """
import asyncio, pickle, sys
for value in pickle.load(sys.stdin.buffer):
    print(type(value).__name__, value.__qualname__, end=" ")
    results = [value(x) for x in (1, 2)]
    if hasattr(results[0], "send"):
        async def main(): return [await result for result in results]
        results = asyncio.run(main())
    print(results, value.stats.accepted)
"""


MAIN = """
import sys, pickle
{imports}
from batchify import batched

factor = 10

@batched(batch_size=2)
def scale(xs):
    return [factor * x for x in xs]

@batched(batch_size=2)
async def fetch(xs):
    return [factor * x for x in xs]

class Scaler:
    @batched(batch_size=2)
    def times(self, xs):
        return [factor * x for x in xs]

    @batched(batch_size=2)
    @classmethod
    def of_class(cls, xs):
        return [f"{{cls.__name__}} {{x}}" for x in xs]

class Heir(Scaler):
    @batched(batch_size=2)
    def times(self, xs):
        return [-super(Heir, self).times(x) for x in xs]

{end}
"""


def test_cloudpickle_keeps_the_decorator_of_functions_in_main() -> None:
    # A buffer that travelled would bring its figures along.
    end = "scale(1)\nsys.stdout.buffer.write(cloudpickle.dumps("
    end += "[scale, fetch, Scaler().times, Heir().times, Scaler.of_class, Heir.of_class]))"
    script = MAIN.format(imports="import cloudpickle", end=end)
    pickled = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=100, check=True).stdout
    done = subprocess.run([sys.executable, "-c", RECEIVER], input=pickled, capture_output=True, timeout=100, check=True)
    assert done.stdout.decode().splitlines() == [
        "BatchedFunction scale [10, 20] 2",
        "BatchedCoroutineFunction fetch [10, 20] 2",
        "BatchedFunction Scaler.times [10, 20] 2",
        "BatchedFunction Heir.times [-10, -20] 2",
        "BatchedFunction Scaler.of_class ['Scaler 1', 'Scaler 2'] 2",
        "BatchedFunction Scaler.of_class ['Heir 1', 'Heir 2'] 2",
    ]


def test_pickle_finds_functions_in_main_by_their_names() -> None:
    end = "for each in (scale, fetch, Scaler.times):\n"
    end += "    assert pickle.loads(pickle.dumps(each)) is each, each\n"
    end += "assert pickle.loads(pickle.dumps(Scaler().times))(3) == 30\n"
    end += "assert pickle.loads(pickle.dumps(Heir.of_class))(3) == 'Heir 3'\n"
    run_script(MAIN.format(imports="", end=end))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing_takes_decorated_functions(method: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    end = """
if __name__ == "__main__":
    import multiprocessing, warnings
    warnings.simplefilter("ignore")
    assert scale(1) == 10
    with multiprocessing.get_context("METHOD").Pool(1) as pool:
        print(pool.map(scale, [1, 2]), pool.map(Scaler().times, [3]), pool.map(Heir.of_class, [4]))
"""
    script.write_text(MAIN.format(imports="", end=end.replace("METHOD", method)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "[10, 20] [30] ['Heir 4']\n"


# Another function at the same place


def test_pickled_function_is_made_anew_where_nothing_stands_at_its_place() -> None:
    def plain(xs: list[int]) -> list[int]:
        return [10 * x for x in xs]

    plain.__qualname__ = "gone"
    plain.__module__ = "__main__"
    function = batched(batch_size=2)(plain)
    other = there_and_back(cloudpickle, function)
    assert (other(3), other is function, other.__qualname__) == (30, False, "gone")


def test_pickled_function_is_made_anew_where_another_stands_at_its_place() -> None:
    def other(xs: list[int]) -> list[int]:
        return [20 * x for x in xs]

    other.__qualname__ = "scale"
    function = batched(batch_size=2)(other)
    made = there_and_back(cloudpickle, function)
    assert (made is scale, made is function, made(3), made.__wrapped__([4])) == (False, False, 60, [80])
    assert made.__qualname__ == "scale"


def test_copy_of_an_object_that_keeps_submit_passes_items_to_the_copy() -> None:
    class Scale:
        def __init__(self, factor: int) -> None:
            self.factor = factor
            self.send = self.scale.submit

        @batched(batch_size=1)
        def scale(self, xs: list[int]) -> list[int]:
            return [x * self.factor for x in xs]

    original = Scale(2)
    copied = copy.deepcopy(original)
    copied.factor = 5
    assert (original.send(1).result(), copied.send(1).result()) == (2, 5)
