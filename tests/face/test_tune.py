"""`batchify.tune`: what it measures, what it recommends for a curve that is known, and what its command says."""

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from batchify import batched, tune
from batchify.tune import Curve, Recommendation, Run, main, measure, recommend, simulate

pytestmark = pytest.mark.thread_unsafe(reason="measures CPU time, and prints")

QUICK: dict[str, Any] = {"seconds": 0.001, "sizes": [1, 2, 4]}  # each size a few times


# Measuring


def doubled(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


def streamed(xs: list[int]) -> Iterator[int]:
    yield from xs


def in_a_future(xs: list[int]) -> "Future[list[int]]":
    future: Future[list[int]] = Future()
    threading.Thread(target=future.set_result, args=(xs,)).start()
    return future


async def awaited(xs: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return xs


async def streamed_and_awaited(xs: list[int]) -> AsyncIterator[int]:
    for x in xs:
        yield x


async def streamed_and_cleaned_up(xs: list[int]) -> AsyncIterator[int]:
    for x in xs:
        yield x
    for _ in range(10):  # all are answered, but it has not ended
        await asyncio.sleep(0)


class Model:
    def plain(self, xs: list[int]) -> list[int]:
        return xs

    @batched(batch_size=8)
    def predict(self, xs: list[int]) -> list[int]:
        return xs

    @batched(batch_size=8)
    async def apredict(self, xs: list[int]) -> list[int]:
        return xs


MODEL = Model()


@pytest.mark.parametrize(
    "f",
    [
        doubled,
        streamed,
        in_a_future,
        awaited,
        streamed_and_awaited,
        streamed_and_cleaned_up,
        batched(batch_size=8, timeout=10**9)(doubled),
        batched(batch_size=8, timeout=10**9)(awaited),
        MODEL.plain,
        MODEL.predict,
        MODEL.apredict,
    ],
    ids=lambda f: f"{type(f).__name__}-{f.__name__}",
)
def test_any_list_function_is_measured(f: Callable[..., Any]) -> None:
    curve = measure(f, range(100), **QUICK)
    assert [point.size for point in curve.points] == [1, 2, 4]
    assert all(point.runs >= 1 and point.seconds > 0 for point in curve.points)
    assert curve.name == f.__qualname__
    assert not curve.stopped


def test_batches_are_of_the_items_and_of_those_sizes() -> None:
    batches = []

    def f(xs: list[str]) -> list[str]:
        batches.append(xs)
        return xs

    curve = measure(f, ["a", "b", "c", "d"], **QUICK)
    assert {len(batch) for batch in batches} == {1, 2, 4}
    assert {item for batch in batches for item in batch} <= set("abcd")
    assert curve.weights == ()  # all are equally long


def test_sizes_end_where_the_items_end_or_an_item_gets_hardly_cheaper() -> None:
    assert [point.size for point in measure(doubled, range(100), seconds=0.5).points][-1] <= 64
    assert measure(doubled, range(100), seconds=0.001, sizes=[128]).points[0].size == 128


def test_several_lists_are_passed_as_several_lists() -> None:
    seen: set[tuple[int, str]] = set()

    def f(xs: list[int], ys: list[str]) -> list[int]:
        seen.update(zip(xs, ys, strict=True))
        return xs

    assert measure(f, [(1, "a"), (2, "b")], **QUICK).calls == [(1, "a"), (2, "b")]
    assert seen == {(1, "a"), (2, "b")}


def test_items_of_unequal_weight_are_measured_alike_too() -> None:
    batches = []

    @batched(batch_size=8)
    def f(texts: list[str]) -> list[str]:
        batches.append(sorted(map(len, texts)))
        return texts

    curve = measure(f, ["x" * length for length in range(1, 101)], **QUICK)
    assert curve.weights == tuple(range(1, 101))
    assert [point.alike is not None for point in curve.points] == [False, True, True]
    assert any(batch == list(range(batch[0], batch[0] + 4)) for batch in batches if len(batch) == 4)
    assert all(run.most <= run.total <= run.size * run.most for run in curve.runs)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"weight": lambda text: text.count("b"), "max_weight": 9}, (0.0, 1.0, 2.0)),
        ({"group_by": lambda text: text.count("a")}, (1.0, 2.0, 0.0)),
        ({"group_by": lambda text: text[0]}, ()),  # no number
        ({}, (1.0, 3.0, 2.0)),
    ],
)
def test_items_weigh_what_the_options_say_or_their_length(options: dict[str, Any], weights: tuple[float, ...]) -> None:
    f = batched(batch_size=8, **options)(lambda texts: texts)
    assert measure(f, ["a", "aab", "bb"], **QUICK).weights == weights


def test_batches_of_like_items_say_nothing_of_batches_that_run_at_once() -> None:
    never = threading.Event()

    def f(texts: list[str]) -> list[str]:
        never.wait(0.01 if len(set(map(len, texts))) < 4 else 0.0)  # the alike ones are the slow ones
        return texts

    curve = measure(f, ["x" * (number // 2) for number in range(200)], seconds=0.5, sizes=[4])
    (point,) = curve.points
    assert point.alike is not None
    assert point.alike > 2 * point.seconds
    assert curve.slowdown == {1: 1.0}


def test_it_is_measured_how_long_callers_are_kept_from_calling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        monotonic = staticmethod(time.monotonic)
        process_time = staticmethod(time.process_time)

        @staticmethod
        def sleep(seconds: float) -> None:
            time.sleep(seconds + 0.002)

    monkeypatch.setattr(tune, "time", Clock)
    never = threading.Event()
    curve = measure(lambda xs: [never.wait(0.001) for _ in xs], range(9), seconds=1.0, sizes=[1, 2])
    assert min(curve.late) >= 0.002


def test_what_the_function_raises_at_a_size_ends_the_curve_there() -> None:
    def f(xs: list[int]) -> list[int]:
        if len(xs) > 2:
            raise MemoryError("the card is full")
        return xs

    curve = measure(f, range(100), **QUICK)
    assert [point.size for point in curve.points] == [1, 2]
    assert curve.stopped == "with 4 items it raised MemoryError: the card is full"


def test_what_the_function_raises_for_one_item_is_raised() -> None:
    def f(xs: list[int]) -> list[int]:
        raise ValueError("no model")

    with pytest.raises(ValueError, match=r"^no model$"):
        measure(f, range(100), **QUICK)


def test_function_that_fails_every_item_is_not_taken_for_a_fast_one() -> None:
    with pytest.raises(PermissionError, match=r"^no token$"):
        measure(lambda xs: [PermissionError("no token")] * len(xs), range(100), **QUICK)


def test_function_that_fails_now_and_then_is_measured_all_the_same() -> None:
    single = [0]

    def f(xs: list[int]) -> list[int]:
        single[0] += len(xs) == 1
        if len(xs) == 1 and single[0] == 2:
            raise OSError("a hiccup")
        return xs

    curve = measure(f, range(100), **QUICK)
    assert [point.size for point in curve.points] == [1, 2, 4]
    assert curve.stopped == "with 1 item it raised OSError: a hiccup"


def test_items_that_have_no_answer_do_not_end_the_measuring() -> None:
    def f(ids: list[int]) -> dict[int, str]:
        return {number: "known" for number in ids if number > 3}

    curve = measure(f, range(100), seconds=0.05, sizes=[1, 2])
    assert [point.size for point in curve.points] == [1, 2]
    assert not curve.stopped


def test_size_at_which_only_batches_of_like_items_fail_is_the_last_one() -> None:
    def f(texts: list[str]) -> list[str]:
        lengths = sorted(map(len, texts))
        if len(lengths) > 1 and lengths[-1] - lengths[0] < len(lengths):
            raise MemoryError("the card is full")
        return texts

    curve = measure(f, ["x" * number for number in range(200)], **QUICK)
    assert [(point.size, point.alike) for point in curve.points] == [(1, None), (2, None)]
    assert curve.stopped == "with 2 items it raised MemoryError: the card is full"


def test_no_time_is_lost_to_a_function_that_loads_its_model_at_first() -> None:
    never, calls = threading.Event(), [0]

    def f(xs: list[int]) -> list[int]:
        calls[0] += 1
        never.wait(0.3 if calls[0] == 1 else 0.0)
        return xs

    assert len(measure(f, range(100), seconds=1.0).points) > 2


def test_batches_are_of_one_group_where_there_are_groups() -> None:
    batches = []

    @batched(batch_size=8, group_by=lambda item: item[0])
    def f(items: list[tuple[str, int]]) -> list[int]:
        batches.append({name for name, _ in items})
        return [number for _, number in items]

    measure(f, [(name, number) for name in "abc" for number in range(9)], seconds=0.1, sizes=[1, 2, 4])
    assert all(len(names) == 1 for names in batches)
    assert set.union(*batches) == set("abc")


def test_batches_do_not_weigh_more_than_they_may() -> None:
    f = batched(batch_size=8, weight=lambda text: len(text), max_weight=10)(lambda texts: texts)
    assert [point.size for point in measure(f, ["four", "six..."], seconds=0.001, sizes=[1, 2, 4]).points] == [1, 2]


def test_function_that_does_not_bear_two_batches_at_once_is_not_recommended_it() -> None:
    lock, another = threading.Lock(), threading.Event()

    def f(xs: list[int]) -> list[int]:
        if not lock.acquire(blocking=False):
            another.set()
            raise RuntimeError("one at a time")
        try:
            another.wait(0.2)  # where two run at once, until there are two
            return xs
        finally:
            lock.release()

    curve = measure(f, range(100), concurrency=4, **QUICK)
    assert set(curve.slowdown) == {1}
    assert curve.stopped == "with 2 batches at once it raised RuntimeError: one at a time"


def test_measuring_is_refused_on_a_running_loop() -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"an event loop runs in this thread: await asyncio.to_thread\(measure"):
            measure(doubled, [1], **QUICK)
        assert (await asyncio.to_thread(measure, doubled, range(9), **QUICK)).points

    asyncio.run(main())


def test_method_of_no_instance_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"^measure\(\): <BatchedMethod Model.predict.*> is of no instance: measure the"
    ):
        measure(Model.predict, [1])


def test_method_that_is_not_decorated_and_of_no_instance_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"^measure\(\): <function Model.plain .* is of no instance: measure the method"
    ):
        measure(Model.plain, [1])


def test_items_of_several_lists_must_be_tuples() -> None:
    def f(xs: list[int], ys: list[str]) -> list[int]:
        return xs

    with pytest.raises(
        TypeError, match=r"^measure\(\): the function takes 2 lists, so each item must be a tuple of 2$"
    ):
        measure(f, ["ab"])


def test_table_is_no_sequence_of_rows() -> None:
    class Table(list[int]):
        columns = ("a", "b")

    with pytest.raises(
        TypeError, match=r"must be a sequence of what callers pass \(a table: a list of its rows\), got Table$"
    ):
        measure(doubled, Table([1]))


def test_items_that_are_too_few_are_repeated_which_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "batchify"):
        measure(doubled, [1, 2], **QUICK)
    assert caplog.messages == ["measure(): 2 items are too few for batches of 4: they are repeated"]


def test_batches_run_at_once_only_where_the_function_bears_it() -> None:
    running, most = [0], [0]

    def f(xs: list[int]) -> list[int]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        running[0] -= 1
        return xs

    assert measure(f, range(100), seconds=0.1, sizes=[1, 2]).slowdown == {1: 1.0}
    assert most == [1]
    found = measure(batched(batch_size=2, concurrency=2)(f), range(100), seconds=0.5, sizes=[1, 2]).slowdown
    assert all(found[at_once] >= 1 for at_once in found)
    assert set(found) <= {1, 2}


@pytest.mark.parametrize(
    ("items", "options", "error", "message"),
    [
        (
            iter([1]),
            {},
            TypeError,
            "measure(): items must be a sequence of what callers pass (a table: a list of its rows), got list_iterator",
        ),
        (
            {1: 2},
            {},
            TypeError,
            "measure(): items must be a sequence of what callers pass (a table: a list of its rows), got dict",
        ),
        (
            [],
            {},
            ValueError,
            "measure(): items must hold one item at least, better hundreds, as they come; it is empty",
        ),
        ([1], {"seconds": 0}, ValueError, "measure(): seconds must be positive and finite, got 0"),
        ([1], {"sizes": [0, 1]}, ValueError, "measure(): sizes must be ints of at least 1, got [0, 1]"),
        ([1], {"sizes": [2.5]}, ValueError, "measure(): sizes must be ints of at least 1, got [2.5]"),
        ([1], {"sizes": []}, ValueError, "measure(): sizes must be ints of at least 1, got []"),
        ([1], {"concurrency": -1}, ValueError, "measure(): concurrency must be at least 1, got -1"),
    ],
)
def test_wrong_arguments_of_measure(items: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        measure(doubled, items, **options)
    assert str(raised.value) == message


def test_what_cannot_be_decorated_cannot_be_measured() -> None:
    with pytest.raises(TypeError, match=r"must take one parameter or more by position"):
        measure(lambda: [], [1])  # noqa: PIE807


# The curve


CALLS = [(number,) for number in range(1000)]


def curve_of(seconds: Callable[[int], float], *sizes: int, **more: Any) -> Curve:
    return Curve("f", CALLS, (), [Run(size, seconds(size)) for size in sizes], **more)


def test_line_through_points_that_lie_on_one() -> None:
    line = curve_of(lambda size: 0.01 + 0.002 * size, 1, 2, 4, 8).line
    assert line[:3] == pytest.approx((0.01, 0.002, 0.0))
    assert line.until == 8


def test_line_ends_where_the_curve_leaves_it() -> None:
    curve = curve_of(lambda size: (0.01 + 0.001 * size) * (1 if size < 64 else 5), 1, 2, 4, 8, 16, 32, 64, 128)
    assert curve.line.until == 32
    assert curve.line.each == pytest.approx(0.001)


def test_line_of_one_point() -> None:
    fixed, each, error, until = curve_of(lambda size: 0.5, 1).line
    assert (fixed + each, error, until) == pytest.approx((0.5, 0.0, 1))


def test_size_up_to_which_larger_batches_pay() -> None:
    assert curve_of(lambda size: 0.01 + 0.001 * size, 1, 2, 4, 8, 16, 32, 64, 128).pays_up_to() == 64
    assert curve_of(lambda size: 0.01 * size, 1, 2, 4).pays_up_to() == 1


def padded_curve(**more: Any) -> Curve:
    """A model that pads: 1 ms, and 0.01 ms for each item and unit of the longest one."""
    weights = tuple(float(1 + number % 500) for number in range(1000))
    runs = []
    for size in (1, 4, 16):
        for alike, total, most in ((False, 250 * size, 500 - 250 // size), (True, 250 * size, 250 + size)):
            if size > 1 or not alike:
                runs.append(Run(size, 0.001 + 0.00001 * size * most, total=total, most=most, alike=alike))
    return Curve("embed", CALLS, weights, runs, **more)


def test_curve_knows_what_like_items_save() -> None:
    assert padded_curve().saved_by_likeness == pytest.approx(0.42, abs=0.05)
    assert curve_of(lambda size: 0.01 * size, 1, 2, 4).saved_by_likeness == 0


# Simulating


def test_lone_call_takes_the_run_time_and_the_timeout() -> None:
    curve = curve_of(lambda size: 0.5, 1, 8)
    calm: dict[str, Any] = {"arrivals": [10.0 * call for call in range(20)]}
    assert simulate(curve, batch_size=8, **calm).latencies == pytest.approx([0.5] * 20)
    assert simulate(curve, batch_size=8, timeout=2.0, **calm).latencies == pytest.approx([2.5] * 20)


def test_callers_in_a_closed_loop_fill_batches_of_as_many() -> None:
    found = simulate(curve_of(lambda size: 0.5, 1, 8), batch_size=8, timeout=1.0, callers=8, items=800)
    assert found.stats.sizes == {8: 100}
    assert found.throughput == pytest.approx(16, rel=0.03)
    assert found.utilisation == pytest.approx(1, rel=0.03)


def test_rate_that_is_too_high_does_not_keep_up() -> None:
    curve = curve_of(lambda size: 0.1, 1, 8)
    assert simulate(curve, batch_size=8, rate=60).keeps_up
    assert not simulate(curve, batch_size=8, rate=90).keeps_up
    assert not simulate(curve, batch_size=1, rate=60).keeps_up


def test_batches_that_run_beside_each_other_take_as_much_longer_as_measured() -> None:
    curve = curve_of(lambda size: 0.5, 1, 8, slowdown={1: 1.0, 2: 1.5})
    found = simulate(curve, batch_size=1, concurrency=2, arrivals=[0.0, 0.0])
    assert found.latencies == pytest.approx([0.5, 0.75])


def late_calls(late: float, *arrivals: float) -> Any:
    """Let calls come to a function that takes a second, while which it keeps callers from calling for so long."""
    return simulate(curve_of(lambda size: 1.0, 1, 8, late=(late,)), batch_size=8, arrivals=arrivals)


def test_calls_that_are_kept_from_coming_all_come_as_the_function_ends() -> None:
    found = late_calls(10.0, 0.0, 0.25, 0.5, 0.75)
    assert found.stats.sizes == {1: 1, 3: 1}
    assert found.latencies == pytest.approx([1.0, 1.75, 1.5, 1.25])  # from when they were to come


def test_calls_that_are_kept_from_coming_may_miss_a_batch() -> None:
    found = late_calls(0.5, 0.0, 0.25, 0.8125, 0.875)  # the last two come together at 1.3125, in the second batch
    assert found.stats.sizes == {1: 2, 2: 1}
    assert found.latencies == pytest.approx([1.0, 1.75, 2.1875, 2.125])


def test_more_batches_at_once_than_were_measured_bring_nothing() -> None:
    found = simulate(curve_of(lambda size: 0.5, 1, 8), batch_size=1, concurrency=2, arrivals=[0.0, 0.0])
    assert found.latencies == pytest.approx([0.5, 1.0])


def test_what_keeps_up() -> None:
    curve = curve_of(lambda size: 0.5, 1, 8)
    assert simulate(curve, batch_size=8, timeout=None, callers=8).keeps_up
    assert simulate(curve, batch_size=8, timeout=None, rate=10).keeps_up  # some wait at the end, as ever
    assert simulate(curve, batch_size=10**9, rate=10).keeps_up
    assert not simulate(curve, batch_size=8, max_pending=8, callers=40).keeps_up  # most are refused, and call no more


def test_all_options_count() -> None:
    curve = Curve("f", [("a",), ("b",), ("a",)], (), [Run(1, 0.5), Run(8, 0.5)])
    arrivals = [0.0] * 6

    def play(**options: Any) -> Any:
        return simulate(curve, batch_size=8, timeout=1.0, arrivals=arrivals, **options).stats

    assert play(dedupe=True).sizes == {2: 1}
    assert play(group_by=str).sizes == {2: 1, 4: 1}
    assert play(weight=len, max_weight=3).sizes == {3: 2}
    assert play(max_pending=4).sizes == {4: 1, 2: 1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0, "rate": 1}, ValueError, "simulate(): batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "rate": 0}, ValueError, "simulate(): rate must be positive and finite, got 0"),
        ({"batch_size": 1, "callers": -1}, ValueError, "simulate(): callers must be positive and finite, got -1"),
        ({"batch_size": 1}, TypeError, "simulate(): exactly one of rate, callers, arrivals must be given, got none"),
        (
            {"batch_size": 1, "rate": 1, "callers": 1},
            TypeError,
            "simulate(): exactly one of rate, callers, arrivals must be given, got rate, callers",
        ),
    ],
)
def test_wrong_arguments_of_simulate(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        simulate(Curve.of_line(1.0, 0.0, 8), **options)
    assert str(raised.value).startswith(message)


# Recommending


def test_function_with_a_fixed_cost_gets_large_batches_and_no_timeout() -> None:
    found = recommend(curve_of(lambda size: 0.01 + 0.0001 * size, 1, 4, 16, 64), rate=500)
    assert found.line == "@batched(batch_size=64)"
    assert found.setting == (64, 0.0, 1, None)
    assert found.expected.keeps_up
    assert not found.today.keeps_up  # as it is not decorated, one by one
    assert found.copies == 1
    assert found.why.startswith("A batch of 64 takes 1.6 times as long as a single item. It is busy ")
    assert found.why.endswith("items: they form while it is busy, so to wait for more would only take time.")


def test_few_callers_do_not_fill_a_large_batch() -> None:
    found = recommend(curve_of(lambda size: 0.01 + 0.0001 * size, 1, 4, 16, 64), callers=40)
    assert found.why.startswith("With 40 callers a batch of 64 never fills. ")


def test_function_that_does_not_profit_is_told_so() -> None:
    found = recommend(curve_of(lambda size: 0.001 * size, 1, 2, 4, 8), rate=100)
    assert found.setting.batch_size == 1
    assert found.why.startswith("Batches do not pay here: more at once bring less than they cost. ")


@cache
def padded() -> Recommendation:
    return recommend(padded_curve(), rate=400)


def test_like_items_get_a_group() -> None:
    found = padded()
    assert found.setting.width is not None
    assert f"group_by=lambda item: len(item) // {found.setting.width}" in found.line
    assert found.why.startswith("In a batch of mixed lengths short ones wait for long ones: then calls would wait ")


def test_group_of_the_users_own_stays() -> None:
    def language(text: str) -> str:
        return "de"

    f = batched(batch_size=8, group_by=language)(doubled)
    options = measure(f, range(8), **QUICK).options
    found = recommend(padded_curve(options=options), rate=200)
    assert found.setting.width is None
    assert found.line.endswith(")  # and as it is: group_by")


def test_rate_that_is_too_high_takes_copies() -> None:
    found = recommend(curve_of(lambda size: 0.01 * size**0.9, 1, 2, 4, 8), rate=500)
    assert found.copies == 5
    assert found.expected.keeps_up
    assert found.why.endswith(" One cannot keep up with 500 calls/s: it takes 5 copies (processes), each decorated so.")


def test_limit_of_the_99th_percentile_is_used_for_fewer_batches() -> None:
    curve = curve_of(lambda size: 0.01 + 0.0001 * size, 1, 4, 16, 64)
    soon, late = recommend(curve, rate=200), recommend(curve, rate=200, p99=0.2)
    assert late.setting.timeout
    assert soon.expected.percentile(99) < late.expected.percentile(99) <= 0.2
    assert late.expected.stats.mean_size > 2 * soon.expected.stats.mean_size
    assert "without the wait they would have" in late.why


def test_limit_that_cannot_be_kept_is_told() -> None:
    found = recommend(curve_of(lambda size: 0.01 + 0.0001 * size, 1, 4, 16, 64), rate=200, p99=0.001)
    assert "No setting keeps 99 of 100 calls below 0.001 s: the nearest is 0.02" in found.why


def test_as_many_callers_as_there_are_make_a_full_batch() -> None:
    found = recommend(curve_of(lambda size: 0.01 + 0.0001 * size, 1, 4, 16, 64), callers=40)
    assert found.setting.batch_size == 40
    assert found.expected.stats.mean_size == pytest.approx(40, abs=1)


def test_callers_are_shared_among_batches_that_run_at_once() -> None:
    curve = curve_of(lambda size: 0.004 + 0.003 * size, 1, 4, 16, 64, slowdown={1: 1.0, 2: 1.0, 4: 1.1})
    found = recommend(curve, callers=32)
    assert (found.setting.batch_size, found.setting.concurrency) == (8, 4)
    assert "4 at once take 1.1 times as long each" in found.why


def test_single_caller_is_told_that_nothing_can_be_gained() -> None:
    found = recommend(curve_of(lambda size: 0.01, 1, 4), callers=1)
    assert found.why == "A single caller waits for each answer before the next call. So no batch can form."


def test_timeout_of_a_second_is_told() -> None:
    assert tune.Setting(8, 1.0).line(curve_of(lambda size: 0.5, 1, 8)) == "@batched(batch_size=8, timeout=1.0)"


def test_line_can_be_pasted_and_names_what_stays() -> None:
    options = batched(batch_size=8, weight=lambda text: 1, max_weight=9, isolate=(KeyError, OSError), on_batch=print)
    curve = padded_curve(options=measure(options(doubled), range(8), **QUICK).options)
    line = recommend(curve, rate=100).line
    assert line.endswith("  # and as it is: weight, max_weight, isolate, on_batch")
    compile(line + "\ndef f(xs): ...", "line", "exec")


def test_items_that_are_refused_do_not_count_as_keeping_up() -> None:
    curve = curve_of(lambda size: 0.01, 1, 4)
    assert not simulate(curve, batch_size=4, max_pending=4, rate=2000).keeps_up
    assert simulate(curve, batch_size=4, max_pending=40, rate=200).keeps_up


def test_nothing_is_answered_that_is_never_due() -> None:
    found = simulate(curve_of(lambda size: 0.01, 1, 4), batch_size=4, timeout=None, callers=2)
    assert not found.keeps_up
    assert (found.throughput, found.mean, found.stats.pending) == (0.0, math.inf, 2)


def test_recorded_moments_may_begin_anywhere_and_come_in_any_order() -> None:
    curve = curve_of(lambda size: 0.5, 1, 8)
    plain, recorded = ([10.0, 0.0], [1.7e9 + 10, 1.7e9])
    both = [simulate(curve, batch_size=8, arrivals=moments) for moments in (plain, recorded)]
    assert both[0].latencies == pytest.approx(both[1].latencies)
    assert both[0].throughput == pytest.approx(both[1].throughput)
    with pytest.raises(ValueError, match=r"^simulate\(\): arrivals must hold one moment at least, it is empty$"):
        simulate(curve, batch_size=8, arrivals=[])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rate": 0}, ValueError, "recommend(): rate must be positive and finite, got 0"),
        ({}, TypeError, "recommend(): exactly one of rate, callers must be given, got none"),
        ({"rate": 1, "p99": 0}, ValueError, "recommend(): p99 must be positive and finite, got 0"),
    ],
)
def test_wrong_arguments_of_recommend(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        recommend(Curve.of_line(1.0, 0.0, 8), **options)
    assert str(raised.value).startswith(message)


def test_curve_of_one_size_is_too_little() -> None:
    with pytest.raises(ValueError, match=r"the curve of f must have two sizes at least, it has one: no memory"):
        recommend(curve_of(lambda size: 0.01, 1, stopped="no memory"), rate=1)


def test_pictures_have_texts_of_text(tmp_path: Path) -> None:
    found = padded()
    found.plot(tmp_path / "both.svg")
    found.curve.plot(tmp_path / "curve.svg")
    both, curve = ((tmp_path / f"{name}.svg").read_text() for name in ("both", "curve"))
    for text in ("items in a batch", "run time in ms", "measured", "of items that are alike"):
        assert f">{text}<" in both
        assert f">{text}<" in curve
    assert ">recommended<" in both
    assert ">calls per second<" in both


# The command: `places` is a module that users might have


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_module.py").write_text(
        "from batchify import batched\n"
        "items = list(range(100))\n"
        "def make(): return items\n"
        "@batched(batch_size=4)\n"
        "def look_up(ids): return ids\n"
        "def broken(ids): raise ValueError('no model')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "users_module"


def test_command_prints_one_screen(places: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "tune.svg"
    load = ["--rate", "20", "--seconds", "0.05", "--plot", str(picture)]
    main([f"{places}:look_up", "--items", f"{places}:items", *load])
    said = capsys.readouterr().out
    assert "look_up() takes " in said
    assert "    @batched(batch_size=" in said
    assert "\ntoday " in said
    assert len(said.splitlines()) < 40
    rows = [line for line in said.splitlines() if line.startswith(("this ", "today ", "next "))]
    assert all(len(line) <= 80 for line in rows), said
    assert picture.exists()


def test_command_prints_json(places: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"{places}:look_up", "--items", f"{places}:make", "--callers", "4", "--seconds", "0.05", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["line"].startswith("@batched(batch_size=")
    assert found["batch_size"] >= 1
    assert found["points"][0]["size"] == 1
    assert {"mean", "p50", "p95", "p99", "throughput", "batch", "busy", "keeps_up"} == set(found["expected"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["look_up", "--items", "P:items", "--rate", "1"], "not found: write package.module:name, got 'look_up'"),
        (
            ["P:look_up", "--items", "P:nothing", "--rate", "1"],
            "not found: P:nothing: module 'P' has no attribute 'nothing'",
        ),
        (
            ["nowhere:f", "--items", "P:items", "--rate", "1"],
            "not found: nowhere:f: No module named 'nowhere'; it is looked for",
        ),
        (
            ["P:look_up", "--items", "P:number", "--rate", "1"],
            "measure(): items must be a sequence of what callers pass",
        ),
        (["P:look_up", "--items", "P:items", "--rate", "0"], "recommend(): rate must be positive and finite, got 0.0"),
        (["P:look_up", "--items", "P:items"], "one of the arguments --rate --callers is required"),
    ],
)
def test_command_says_what_is_wrong(
    places: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main([argument.replace("P", places) for argument in arguments])
    assert f"error: {message.replace('P', places)}" in capsys.readouterr().err
