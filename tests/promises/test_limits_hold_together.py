"""The limits hold for everybody: whatever options are used together, and whatever callers do meanwhile.

Checked by plain rules: over what calls of the function were seen, and what came back.
"""

import math
from collections import Counter
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchify import BatchReport, BufferFullError

from ..kit import Coroutines, Kit, Threads

Item = tuple[int, int, int, bool]  # a number, its group, its weight, whether it is bad


class Together(RuleBasedStateMachine):
    """Calls a function that has any options, and lets its batches go on one after the other."""

    kind: type[Kit]

    @initialize(
        batch_size=st.integers(1, 4),
        timeout=st.sampled_from([0.0, None]),
        group_by=st.booleans(),
        max_weight=st.none() | st.integers(1, 6),
        dedupe=st.booleans(),
        isolate=st.booleans(),
        concurrency=st.integers(1, 3),
        max_pending=st.none() | st.integers(1, 5),
        hook=st.booleans(),
        stream=st.booleans(),
    )
    def begin(
        self,
        batch_size: int,
        timeout: float | None,
        group_by: bool,
        max_weight: int | None,
        dedupe: bool,
        isolate: bool,
        concurrency: int,
        max_pending: int | None,
        hook: bool,
        stream: bool,
    ) -> None:
        self.kit = self.kind()
        self.reports: list[BatchReport] = []
        options: dict[str, Any] = {"batch_size": batch_size, "timeout": timeout, "dedupe": dedupe, "isolate": isolate}
        options |= {"concurrency": concurrency, "max_pending": max_pending}
        if max_weight is not None:
            options |= {"weight": lambda item, _: item[2], "max_weight": max_weight}
        if group_by:
            options["group_by"] = lambda item, _: item[1]
        if hook:
            options["on_batch"] = self.reports.append
        self.options = options
        self.largest = batch_size
        self.handles: list[tuple[Item, int, str, Any]] = []  # item, order of arrival, constant, handle
        self.left: set[int] = set()
        self.number = 0

        def function(items: list[Item], orders: list[int], *, constant: str = "") -> Any:
            results = [(item[0], order, constant) for item, order in zip(items, orders, strict=True)]
            bad = [item[0] for item in items if item[3]]
            if bad:
                raise ValueError(bad)
            return iter(results) if stream else results

        self.f = self.kit(function, gated=True, **options)

    # For equal items: the order is part of the item, unless it is to be one of a few.
    items = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 7), st.sampled_from([False] * 7 + [True]))

    @rule(item=items, constant=st.sampled_from(["", "", "x"]), how=st.sampled_from(["submit", "start"]))
    def pass_item(self, item: Item, constant: str, how: str) -> None:
        self.number += 1
        order = item[0] if self.options["dedupe"] else self.number
        call = self.kit.submit if how == "submit" else self.kit.start
        try:
            handle = call(self.f, item, order, constant=constant)
        except BufferFullError:
            assert self.options["max_pending"] is not None
            handle = Future()  # what is drawn later must not depend on the threads
            handle.cancel()
            self.left.add(id(handle))
        self.handles.append((item, order, constant, handle))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles))[3]
        if handle.cancel():
            self.left.add(id(handle))

    @rule(batches=st.integers(1, 3))
    def go_on(self, batches: int) -> None:
        self.kit.go_on(batches)

    @rule()
    def flush(self) -> None:
        self.kit.flush(self.f)

    @rule(batch_size=st.integers(1, 5), timeout=st.sampled_from([0.0, None]))
    def set_options(self, batch_size: int, timeout: float | None) -> None:
        self.largest = max(batch_size, self.largest)
        self.f.batch_size, self.f.timeout = batch_size, timeout

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "f"):
            return
        stats = self.f.stats
        assert stats.pending <= (self.options["max_pending"] or math.inf)
        assert stats.in_flight <= self.options["concurrency"]
        assert self.kit.most <= self.options["concurrency"]
        assert stats.accepted == stats.pending + stats.running + stats.answered + stats.failed + stats.cancelled

    def teardown(self) -> None:
        if not hasattr(self, "f"):
            return
        try:
            self.kit.go_on(500)
            self.kit.close(self.f)
            self.check()
        finally:
            self.kit.end()

    def check(self) -> None:
        """Check what came back, and what calls of the function were seen, now that it is closed."""
        self.check_outcomes()
        self.kit.consistent(self.f)
        self.check_reports()
        self.check_batches()

    def check_outcomes(self) -> None:
        for item, order, constant, handle in self.handles:
            outcome = self.kit.outcome(handle)
            if id(handle) in self.left:
                assert handle.cancelled()
            elif isinstance(outcome, BufferFullError):
                assert self.options["max_pending"] is not None
            elif item[3]:
                assert type(outcome) is ValueError
                if self.options["isolate"]:
                    assert outcome.args == ([item[0]],)
            elif isinstance(outcome, BaseException):
                assert not self.options["isolate"]
            else:
                assert outcome == (item[0], order, constant)

    def check_reports(self) -> None:
        batches = self.f.stats.batches
        assert len(self.kit.calls) == batches
        if "on_batch" in self.options:
            assert len(self.reports) == batches
            assert Counter(report.size for report in self.reports) == self.f.stats.sizes

    def check_batches(self) -> None:
        most = self.options.get("max_weight", math.inf)
        seen: dict[Any, list[int]] = {}
        for (items, orders), constants in self.kit.calls:
            assert 1 <= len(items) <= self.largest
            assert len(items) == 1 or sum(item[2] for item in items) <= most
            groups = {item[1] for item in items} if "group_by" in self.options else {0}
            assert len(groups) == 1
            assert set(constants) == {"constant"}
            if self.options["dedupe"]:
                assert len(set(zip(items, orders, strict=True))) == len(items)
            else:
                assert orders == sorted(orders)
                if not self.options["isolate"]:
                    seen.setdefault((constants["constant"], *groups), []).extend(orders)
        if self.options["concurrency"] == 1 or self.kit.kind == "coroutines":
            for orders in seen.values():
                assert orders == sorted(orders)


class OverThreads(Together):
    kind = Threads


class OverCoroutines(Together):
    kind = Coroutines

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        if not hasattr(self, "f"):
            return
        self.kit.settle(self.f)
        stats = self.f.stats
        if self.f.timeout == 0.0 and stats.in_flight < self.options["concurrency"]:
            assert stats.pending == 0


TestAllOptionsTogetherOverThreads = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11")(
    OverThreads.TestCase
)
TestAllOptionsTogetherOverCoroutines = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11")(
    OverCoroutines.TestCase
)
OverThreads.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
OverCoroutines.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
