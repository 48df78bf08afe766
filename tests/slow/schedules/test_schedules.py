"""No schedule breaks a promise: every scenario under many of them.

`SCHEDULES=10` in the environment explores ten times as many, `SCHEDULES_SEED=1` others.
"""

import os
import zlib
from collections.abc import Callable

import pytest

tool = pytest.importorskip("interleave_test")  # needs Python 3.12

from .conftest import FACTOR, Table  # noqa: E402
from .controlled import Seldom, explore  # noqa: E402
from .scenarios import SCENARIOS, first_call_and_close, first_calls, lone_call  # noqa: E402

SEED = int(os.environ.get("SCHEDULES_SEED", "0"))

# How schedules are made, where threads are switched, and how many of them.
WAYS = [
    (tool.PCTStrategy, "shared", 200),
    (Seldom, "shared", 100),
    (tool.PCTStrategy, "line", 80),
    (Seldom, "line", 80),
    (Seldom, "opcode", 20),
]


@pytest.mark.timeout(600 * max(1.0, FACTOR))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_schedule_breaks_a_promise(scenario: Callable[[], None], table: Table) -> None:
    count = 0
    for strategy, granularity, schedules in WAYS:
        # The same schedules in every run: crc32, since hash() of a string differs from process to process.
        seed = zlib.crc32(scenario.__name__.encode()) + SEED
        result = explore(
            scenario,
            schedules=max(1, round(schedules * FACTOR)),
            seed=seed,
            strategy=strategy(),
            granularity=granularity,
        )
        count += result.schedules_run
        if result.failure is not None:
            pytest.fail(f"{strategy.__name__}, {granularity}: {result.failure.format()}", pytrace=False)
        assert not result.leaked_threads
    table.append((scenario.__name__, "shared, lines, opcodes", count, ""))


@pytest.mark.timeout(600 * max(1.0, FACTOR))
@pytest.mark.parametrize(
    ("scenario", "preemptions"),
    [(lone_call, 2), (first_call_and_close, 1)] + [(lone_call, 3), (first_calls, 1)] * (FACTOR >= 5),
)
def test_no_schedule_with_few_preemptions_breaks_a_promise(
    scenario: Callable[[], None], preemptions: int, table: Table
) -> None:
    """All such: so often a thread that could go on is stopped before it touches what threads share, for any other."""
    strategy = tool.DFSStrategy(max_preemptions=preemptions)
    result = explore(scenario, schedules=10**6, seed=0, strategy=strategy, granularity="shared")
    assert result.failure is None, result.failure.format()
    assert result.exhausted
    table.append((scenario.__name__, f"all with up to {preemptions} preemptions", result.schedules_run, ""))
