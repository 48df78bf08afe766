"""Nobody hangs where there is no memory for a batch: it is made again, and its items keep their place."""

from collections.abc import Callable
from typing import Any

import pytest

from .. import inside
from ..kit import Kit


@pytest.mark.parametrize("lacking", [inside.no_memory_for_a_batch, inside.no_memory_to_count_a_batch])
def test_batch_without_memory_for_it_is_made_again(kit: Kit, lacking: Callable[[], Any]) -> None:
    with lacking() as errors:
        f = kit(batch_size=2, timeout=None)
        assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
    assert f.stats.sizes_by_reason == {"full": {2: 1}}
    kit.until_idle(f)
    kit.consistent(f)
    assert not errors


def test_isolate_without_memory_for_a_half_runs_it_later_and_alone(kit: Kit) -> None:
    def function(items: list[int]) -> list[int]:
        if 2 in items and len(items) > 1:
            raise ValueError
        return items

    with inside.no_memory_for_a_batch(of=1) as errors:
        f = kit(function, gated=True, batch_size=2, timeout=None, isolate=True)
        handles: list[Any] = kit.submits(f, [1, 2])
        kit.until_runs(1)
        handles.append(kit.submit(f, 3))  # which waits while the halves do
        kit.go_on(3)
        assert kit.outcomes(handles[:2]) == [1, 2]
        kit.flush(f)
        kit.go_on()
        assert kit.outcome(handles[2]) == 3
    assert kit.batches == [[1, 2], [1], [2], [3]]
    kit.until_idle(f)
    kit.consistent(f)
    assert not errors
