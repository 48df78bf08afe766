"""`batchify.tune.simulate` plays what the library does: the same arrivals and run times make the same batches."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("numpy")

from batchify.tune import Curve, Run, simulate

from ..kit import KINDS, Kit, new_kit

pytestmark = pytest.mark.thread_unsafe(reason="stops the clock")

FIXED, EACH = 1.0, 0.25  # seconds that the function takes, for a batch and for an item
UNIT = 2.0**-12


def really(kit: Kit, moments: list[float], options: dict[str, Any]) -> tuple[list[float], Any]:
    """Let calls come at these moments; return their latencies in the order of the answers, and the figures.

    The clock is moved to each moment at which something may happen, and only there.
    """
    f = kit(gated=True, **options)
    now, began = 0.0, 0
    coming = list(enumerate(moments))
    due = [moment + options["timeout"] for moment in moments]
    ends: list[tuple[float, list[Any]]] = []
    latencies: list[float] = []
    handles: list[Any] = []
    while coming or ends or due:
        moment = min([each for _, each in coming[:1]] + [end for end, _ in ends] + due)
        kit.move(moment - now)
        now = moment
        if coming and coming[0][1] == now:
            handles += kit.submits(f, [coming.pop(0)[0]])
        elif ends and ends[0][0] == now:
            _, batch = ends.pop()
            kit.go_on()
            kit.outcomes([handles[item] for item in batch])
            latencies += [now - moments[item] for item in batch]
        else:
            due.remove(now)
        kit.settle(f)
        if len(kit.batches) > began:
            batch, began = kit.batches[began], began + 1
            ends.append((now + FIXED + EACH * len(batch), batch))
    return latencies, f.stats


@settings(max_examples=60, deadline=None)
@given(
    pauses=st.lists(st.integers(0, 16), min_size=1, max_size=20),
    batch_size=st.integers(1, 4),
    timeout=st.sampled_from([0.0, 0.5, 2.0, 5.0]),
    groups=st.integers(1, 3),
    max_weight=st.none() | st.integers(2, 5),
    kind=st.sampled_from(sorted(KINDS)),
)
@example([0, 0, 0, 0, 0, 40], 2, 5.0, 1, None, "threads")
def test_simulation_forms_the_batches_that_the_library_forms(
    pauses: list[int], batch_size: int, timeout: float, groups: int, max_weight: int | None, kind: str
) -> None:
    moments, moment = [], 0.0
    for number, pause in enumerate(pauses):
        moment += pause / 8
        moments.append(moment + (number + 1) * UNIT)  # so that no two things happen at once
    options: dict[str, Any] = {"batch_size": batch_size, "timeout": timeout}
    if groups > 1:
        options["group_by"] = lambda item: item % groups
    if max_weight is not None:
        options |= {"weight": lambda item: 1 + item % 3, "max_weight": max_weight}
    with new_kit(kind) as kit:
        kit.stop_the_clock()
        latencies, figures = really(kit, moments, options)
    runs = [Run(size, FIXED + EACH * size) for size in range(1, 5)]
    played = simulate(Curve("f", [(number,) for number in range(len(moments))], (), runs), arrivals=moments, **options)
    assert played.latencies == pytest.approx(latencies)
    assert (played.stats.sizes, played.stats.reasons) == (figures.sizes, figures.reasons)
    assert played.stats.longest_wait == pytest.approx(figures.longest_wait)
    assert played.stats.answered == len(moments)
