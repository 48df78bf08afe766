"""The checker of stress runs: a clean history passes, and each rule finds what breaks it."""

from collections.abc import Callable
from math import inf

import pytest

from batchify import BufferFullError, ClosedError, Stats, WaitsForItselfError

from .history import (
    BatchRecord,
    CallRecord,
    History,
    Planned,
    Rules,
    Violation,
    Wait,
    check,
    check_stats,
    moment,
    verdict,
)


def clean() -> History:
    """Calls 1 to 4 of a, 5 and 6 of b; batches 1: [1, 5, 2], 2, which fails: [3, 6], 3, inside it: [7].

    4 is cancelled, 8 refused, 9 left.
    """
    history = History()
    with history.limit("f", 3):
        pass
    for submitter in "aaaabb":
        history.call(submitter, "f", "call")
    first = history.batch("f", [1, 5, 2])
    first.end()
    for token in (1, 5, 2):
        _call(history, token).end("result", -token)
    second = history.batch("f", [3, 6])
    history.call("batch 2", "f", "call", inside=2)
    third = history.batch("f", [7])
    third.end()
    _call(history, 7).end("result", -7)
    second.fail(Planned)
    second.end()
    for token in (3, 6):
        _call(history, token).end("error", Planned(2))
    _call(history, 4).end("cancelled")
    history.call("b", "f", "call").end("refused")
    history.call("b", "f", "call")
    history.leave("b")
    return history


def _call(history: History, token: int) -> CallRecord:
    return next(call for call in history.calls if call.token == token)


def stats(**changes: object) -> Stats:
    figures: dict[str, object] = {
        "accepted": 7,
        "pending": 0,
        "running": 0,
        "in_flight": 0,
        "answered": 4,
        "failed": 2,
        "cancelled": 1,
        "refused": 0,
        "batches": 3,
        "sizes": {3: 1, 2: 1, 1: 1},
        "reasons": {"full": 1, "timeout": 1, "nested": 1},
        "sizes_by_reason": {"full": {3: 1}, "timeout": {2: 1}, "nested": {1: 1}},
        "waited": 0.0,
        "longest_wait": 0.0,
    }
    return Stats(**(figures | changes))  # type: ignore[arg-type]


def rules(history: History) -> set[str]:
    return {violation.rule for violation in check(history)}


def test_clean_history_passes() -> None:
    assert check(clean()) == []
    assert check_stats(clean(), "f", stats()) == []
    assert verdict(check(clean())) == ""


def _lose(history: History) -> None:
    history.batches[0].tokens.remove(5)


def _run_twice(history: History) -> None:
    history.batches[1].tokens.insert(0, 2)
    _call(history, 2).ended = moment()


def _run_a_cancelled_one_twice(history: History) -> None:
    for _ in range(2):
        history.batch("f", [4]).end()


def _run_a_refused_one(history: History) -> None:
    history.batch("f", [8]).end()


def _refuse_where_there_is_no_limit(history: History) -> None:
    _call(history, 8).end("refused", BufferFullError())


def _run_what_nobody_passed(history: History) -> None:
    history.batch("f", [99]).end()


def _forget_to_answer(history: History) -> None:
    _call(history, 2).outcome = None


def _swap_results(history: History) -> None:
    _call(history, 1).value, _call(history, 2).value = -2, -1


def _use_the_buffer_of_another(history: History) -> None:
    _call(history, 5).buffer = "g"


def _spare_one_of_a_failed_batch(history: History) -> None:
    _call(history, 6).end("result", -6)


def _fail_a_neighbour_of_another_batch(history: History) -> None:
    _call(history, 5).end("error", Planned(2))


def _raise_the_error_of_another_batch(history: History) -> None:
    _call(history, 6).end("error", Planned(1))


def _raise_another_error(history: History) -> None:
    _call(history, 6).end("error", ValueError())


def _begin_before_the_call(history: History) -> None:
    _call(history, 2).began = history.batches[0].ended + 1  # type: ignore[assignment]


def _end_after_the_call(history: History) -> None:
    _call(history, 2).ended = history.batches[0].ended - 0.5


def _yield_after_the_call(history: History) -> None:
    history.batches[0].given[2] = moment()


def _never_end(history: History) -> None:
    batch = BatchRecord(4, "f", [4], moment())
    history.batches.append(batch)


def _be_empty(history: History) -> None:
    history.batch("f", []).end()


def _be_too_large(history: History) -> None:
    history.limits["f"][0].size = 2


def _be_larger_than_was_set_meanwhile(history: History) -> None:
    with history.limit("f", 1):
        pass
    for token in (4, 9):  # the first of these may have been taken before
        _call(history, token).ended = moment()
    history.batch("f", [4]).end()
    history.call("a", "f", "call").end("cancelled")
    history.batch("f", [9, 10]).end()


def _change_the_order_within_a_batch(history: History) -> None:
    history.batches[0].tokens = [2, 5, 1]


def _change_the_order_across_batches(history: History) -> None:
    first, second = _call(history, 2), _call(history, 3)
    first.sequence, second.sequence = second.sequence, first.sequence


def _run_at_once(history: History) -> None:
    _call(history, 7).nested = False


def _tell_that_it_waits_for_itself(history: History) -> None:
    history.batches[2].fail(WaitsForItselfError)
    _call(history, 7).error_from = None
    _call(history, 7).end("error", WaitsForItselfError())
    history.batches[1].end()


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        (_lose, "lost"),
        (_run_twice, "twice"),
        (_run_a_cancelled_one_twice, "twice"),
        (_run_a_refused_one, "refused"),
        (_refuse_where_there_is_no_limit, "refused"),
        (_run_what_nobody_passed, "stranger"),
        (_forget_to_answer, "unanswered"),
        (_swap_results, "result"),
        (_use_the_buffer_of_another, "buffer"),
        (_spare_one_of_a_failed_batch, "error"),
        (_fail_a_neighbour_of_another_batch, "error"),
        (_raise_the_error_of_another_batch, "error"),
        (_raise_another_error, "error"),
        (_begin_before_the_call, "early"),
        (_end_after_the_call, "late"),
        (_yield_after_the_call, "late"),
        (_never_end, "unfinished"),
        (_be_empty, "size"),
        (_be_too_large, "size"),
        (_be_larger_than_was_set_meanwhile, "size"),
        (_change_the_order_within_a_batch, "order"),
        (_change_the_order_across_batches, "order"),
        (_run_at_once, "overlap"),
        (_tell_that_it_waits_for_itself, "ring"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_history_checker_reports_each_kind_of_damage(harm: Callable[[History], None], rule: str) -> None:
    history = clean()
    harm(history)
    assert rules(history) == {rule}
    assert verdict(check(history)).count(f"\n{rule}: ") >= 1


def test_who_waits_for_its_own_batch_may_be_told_so() -> None:
    history = clean()
    call = _call(history, 7)
    history.batches[2].tokens.clear()
    del history.batches[2]
    history.batches[1].tokens.append(7)
    history.batches[1].ended = moment()
    call.error_from = None
    call.end("error", WaitsForItselfError())
    assert "ring" not in rules(history)


def test_both_of_a_ring_may_be_told_so_though_one_would_do() -> None:
    history = clean()
    call, waiter = _call(history, 7), history.batches[2]
    history.waits.append(Wait(waiter.number, 3, waiter.began, told=True))
    call.error_from = None
    call.end("error", WaitsForItselfError())
    history.waits[0].ended = waiter.ended = history.batches[1].ended = moment()
    for token in (3, 6):
        _call(history, token).end("error", Planned(2))
    assert rules(history) == set()


def test_two_batches_on_one_lent_turn_are_found() -> None:
    history = clean()
    call = history.call("c", "f", "call")
    lent = history.batches[2]
    batch = history.batch("f", [call.token])
    batch.end()
    call.end("result", -call.token)
    call.began = lent.began - 1
    batch.began, batch.ended = lent.began, lent.ended  # while the second one waits
    assert rules(history) >= {"overlap"}


def test_overlap_is_allowed_where_two_batches_may_run_at_once() -> None:
    history = clean()
    _run_at_once(history)
    assert check(history, concurrency=2) == []


def isolated() -> History:
    """The second batch of a clean history is run again in halves, of which one fails."""
    history = clean()
    history.rules["f"] = Rules(isolate=True)
    history.batches[1].raised = Planned
    history.batch("f", [3]).end()
    last = history.batch("f", [6])
    last.fail(Planned)
    last.end()
    for token, outcome, value in ((3, "result", -3), (6, "error", Planned(last.number))):
        call = _call(history, token)
        call.error, call.error_from = "", None
        call.end(outcome, value)  # type: ignore[arg-type]
    return history


def test_isolate_may_run_a_failed_batch_again_in_halves() -> None:
    assert check(isolated()) == []
    figures: dict[str, object] = {
        "batches": 5,
        "sizes": {3: 1, 2: 1, 1: 3},
        "answered": 5,
        "failed": 1,
        "reasons": {"full": 1, "timeout": 1, "nested": 1, "isolate": 2},
    }
    assert check_stats(isolated(), "f", stats(**figures)) == []


def _allow_no_isolation(history: History) -> None:
    del history.rules["f"]


def _run_again_what_did_not_fail(history: History) -> None:
    history.batches[1].raised = None


def _run_all_of_it_again(history: History) -> None:
    history.batches[3].tokens.append(6)


def _run_no_half(history: History) -> None:
    del history.batches[3:]
    for token in (3, 6):
        call = _call(history, token)
        call.error_from = None
        call.end("error", Planned(2))


def _mix_groups(history: History) -> None:
    history.rules["f"] = Rules(groups=2)


def _be_too_heavy(history: History) -> None:
    history.rules["f"] = Rules(max_weight=5)


@pytest.mark.parametrize(
    ("begin", "harm", "rule"),
    [
        (isolated, _allow_no_isolation, "twice"),
        (isolated, _run_again_what_did_not_fail, "twice"),
        (isolated, _run_all_of_it_again, "twice"),
        (isolated, _run_no_half, "isolate"),
        (clean, _mix_groups, "group"),
        (clean, _be_too_heavy, "weight"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_rule_of_an_option_finds_what_breaks_it(
    begin: Callable[[], History], harm: Callable[[History], None], rule: str
) -> None:
    history = begin()
    harm(history)
    assert rule in rules(history)


def test_overlap_is_allowed_by_the_concurrency_of_the_function() -> None:
    history = clean()
    _run_at_once(history)
    history.rules["f"] = Rules(concurrency=2)
    assert check(history) == []


def shut() -> History:
    """A clean history; then f is closed, which refuses a call that waits and one that comes, and opened for a block."""
    history = clean()
    history.rules["f"] = Rules(max_pending=1)
    waits = history.call("a", "f", "submit")
    waits.accepted = moment()
    history.call("b", "f", "submit").end("refused", BufferFullError())
    with history.act("close", "f", cancels=True):
        waits.end("refused", ClosedError())
    history.call("b", "f", "submit").end("refused", ClosedError())
    with history.act("enter", "f") as entered:
        pass
    inside = history.call("b", "f", "submit")
    inside.accepted = moment()
    batch = history.batch("f", [inside.token])
    batch.end()
    inside.end("result", -inside.token)
    with history.act("drain", "f"):
        pass
    with history.act("exit", "f", entered=entered):
        pass
    return history


def test_closing_and_opening_and_draining_pass() -> None:
    assert check(shut()) == []
    figures: dict[str, object] = {
        "accepted": 9,
        "answered": 5,
        "failed": 3,
        "refused": 1,
        "batches": 4,
        "sizes": {3: 1, 2: 1, 1: 2},
        "reasons": {"full": 1, "timeout": 2, "nested": 1},
    }
    assert check_stats(shut(), "f", stats(**figures)) == []
    assert check_stats(shut(), "f", stats(**figures | {"failed": 2, "accepted": 8})) != []


def _refuse_when_it_is_open(history: History) -> None:
    history.acts[0].began = history.acts[0].ended = moment()


def _refuse_what_was_accepted(history: History) -> None:
    history.acts[0].cancels = False


def _accept_when_it_is_closed(history: History) -> None:
    call = _call(history, 12)
    call.accepted, call.submitter, call.error = call.ended, "c", ""
    history.batch("f", [12]).end()
    call.end("result", -12)
    history.acts = [act for act in history.acts if act.kind != "drain"]  # which was before that


def _refuse_in_a_block(history: History) -> None:
    history.acts[0].kind = "exit"
    history.call("b", "f", "submit").end("refused", ClosedError())
    history.calls[-1].began, history.calls[-1].ended = history.batches[-1].began, history.batches[-1].ended


def _drain_before_the_answer(history: History) -> None:
    history.acts[2].began = _call(history, 13).accepted + 0.1  # type: ignore[assignment]
    history.acts[2].ended = history.batches[-1].ended - 0.1


def _refuse_where_there_is_room(history: History) -> None:
    history.rules["f"] = Rules(max_pending=2)


def _cancel_what_runs(history: History) -> None:
    _call(history, 13).outcome = "cancelled"


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        (_refuse_when_it_is_open, "closed"),
        (_refuse_what_was_accepted, "closed"),
        (_accept_when_it_is_closed, "closed"),
        (_refuse_in_a_block, "closed"),
        (_drain_before_the_answer, "drained"),
        (_refuse_where_there_is_room, "room"),
        (_cancel_what_runs, "cancelled"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_rule_of_what_is_refused_and_answered_finds_what_breaks_it(harm: Callable[[History], None], rule: str) -> None:
    history = shut()
    harm(history)
    assert rules(history) == {rule}


def test_what_was_seen_on_the_way_is_reported() -> None:
    history = clean()
    history.seen.append(Violation("running", "it does not"))
    assert rules(history) == {"running"}


def test_reports_must_be_as_many_as_batches() -> None:
    history = clean()
    history.rules["f"] = Rules(reports=True)
    history.reports["f"] += (3, 2)
    assert [violation.rule for violation in check_stats(history, "f", stats())] == ["stats"]
    history.reports["f"].append(1)
    assert check_stats(history, "f", stats()) == []


def test_batch_size_set_meanwhile_allows_a_batch_that_may_have_been_taken_before() -> None:
    history = clean()
    with history.limit("f", 1):
        pass
    history.call("a", "f", "call")
    history.call("a", "f", "call")
    batch = history.batch("f", [10, 11])  # taken after the batch before had ended, perhaps before it was set
    batch.end()
    history.leave("a")
    assert check(history) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"pending": 1, "accepted": 8},
        {"running": 1, "accepted": 8},
        {"in_flight": 1},
        {"batches": 4},
        {"sizes": {3: 2, 1: 1}},
        {"reasons": {"full": 1, "nested": 2}},
        {"reasons": {"full": 1, "timeout": 1}},
        {"reasons": {"full": 1, "timeout": 1, "isolate": 1}},
        {"reasons": {"full": 1, "timeout": 1, "inside": 1}},
        {"answered": 3, "accepted": 6},
        {"failed": 3, "answered": 3},
        {"cancelled": 0, "accepted": 6},
        {"cancelled": 3, "accepted": 9},
        {"refused": 2},
        {"accepted": 9},
    ],
    ids=str,
)
def test_stats_that_differ_from_the_history_are_found(changes: dict[str, object]) -> None:
    found = check_stats(clean(), "f", stats(**changes))
    assert {violation.rule for violation in found} == {"stats"}


def test_stats_may_count_a_caller_that_left_as_cancelled_or_not() -> None:
    assert check_stats(clean(), "f", stats(cancelled=2, accepted=8)) == []


def test_unanswered_call_is_reported_without_an_end() -> None:
    history = clean()
    call = history.call("a", "f", "call")
    assert call.ended == inf
    assert "no answer" in verdict(check(history))
