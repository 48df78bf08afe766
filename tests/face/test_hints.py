"""Where batches wait out their timeout for callers that do not exist, the log says so once, and what to do."""

import logging

import pytest

from ..kit import Kit

HINT = (
    "negate() gets 2 of at most 5 items each time, after they waited out the timeout of 1.0 s: no more callers wait "
    "at once. They would wait less with a smaller batch_size or timeout=0; more of them would fill it"
)


def by_timeout(kit: Kit, f: object, *, rounds: int, items: int = 2, pause: float = 0.0) -> None:
    """Let batches wait out their timeouts, one soon after the other, or after a pause."""
    for _ in range(rounds):
        kit.move(pause)
        handles = kit.submits(f, range(items))
        kit.settle(f)
        kit.move(1.0)
        assert kit.outcomes(handles) == [-item for item in range(items)]


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    return [(record.name, record.levelno, record.message) for record in caplog.records if record.name != "asyncio"]


def test_hint_of_too_few_callers_is_logged_once(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=5, timeout=1.0)
    by_timeout(kit, f, rounds=15)
    assert said(caplog) == []
    by_timeout(kit, f, rounds=100)
    assert said(caplog) == [("batchify", logging.WARNING, HINT)]
    kit.until_idle(f)
    assert f.stats.reasons == {"timeout": 115}


def test_hint_is_not_logged_without_a_reason(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    kit.stop_the_clock()
    rare = kit(batch_size=5, timeout=1.0)
    by_timeout(kit, rare, rounds=100, pause=5.0)
    filled = kit(batch_size=2, timeout=1.0)
    by_timeout(kit, filled, rounds=100)
    at_once = kit(batch_size=5, timeout=0.0)
    by_timeout(kit, at_once, rounds=100)
    changing = kit(batch_size=5, timeout=1.0)
    for number in range(100):
        by_timeout(kit, changing, rounds=1, items=1 + number % 3)
    assert said(caplog) == []
