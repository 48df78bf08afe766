"""The benchmark that compares the buffer's rule with the best possible one: is that really the best?"""

import pytest

pytest.importorskip("numpy")

import numpy

from benchmarks.optimal import CURVES, Costs, Decisions, by_buffer, by_early_cut, by_optimum, poisson_arrivals

SMALL = Costs("small", 0.01, 0.002, 4)


def mean(latencies: list[float]) -> float:
    return sum(latencies) / len(latencies)


def test_latency_without_batches_is_the_formula_of_pollaczek_and_khinchine() -> None:
    one = Costs("one at a time", 0.01, 0.0, 1)
    for load in (0.2, 0.5, 0.8):
        queue = 0.01 * load / (2 * (1 - load))
        assert Decisions(one, one.rate(load), 400).solve().latency == pytest.approx(0.01 + queue, rel=1e-4)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_optimum_is_not_beaten_by_waiting_for_a_number_of_items(load: float) -> None:
    decisions = Decisions(SMALL, SMALL.rate(load), 120)
    best = decisions.solve().latency
    found = []
    for enough in range(1, 9):
        runs = numpy.where(numpy.arange(120) >= enough, decisions.serve_all, 0)
        runs[-1] = SMALL.batch_size
        found.append(decisions.evaluate(runs)[0])
    assert min(found) == pytest.approx(best, rel=1e-6)
    assert max(found) > 1.1 * best


def test_optimum_does_in_virtual_time_what_was_calculated() -> None:
    rate = SMALL.rate(0.7)
    best = Decisions(SMALL, rate, 200).solve()
    arrivals = poisson_arrivals(rate, 60_000)
    assert mean(by_optimum(arrivals, SMALL, best)) == pytest.approx(best.latency, rel=0.02)


def test_buffer_without_a_timeout_runs_all_that_waits() -> None:
    rate = SMALL.rate(0.7)
    decisions = Decisions(SMALL, rate, 200)
    expected = decisions.evaluate(decisions.serve_all)[0]
    assert mean(by_buffer(poisson_arrivals(rate, 60_000), SMALL, 0.0)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("costs", CURVES[:1])
@pytest.mark.parametrize("load", [0.05, 0.5, 0.95])
def test_latency_without_a_timeout_is_nearly_the_best(costs: Costs, load: float) -> None:
    decisions = Decisions(costs, costs.rate(load))
    assert decisions.evaluate(decisions.serve_all)[0] <= 1.05 * decisions.solve().latency


def test_rules_give_what_is_reckoned_by_hand() -> None:
    takes_ten = Costs("ten", 10.0, 0.0, 2)
    # The first runs alone, the next two together, then the last.
    assert by_buffer([0.0, 1.0, 2.0, 3.0], takes_ten, 0.0) == [10.0, 19.0, 18.0, 27.0]
    # The first is filled by the second at 1; the others were full at 3.
    assert by_buffer([0.0, 1.0, 2.0, 3.0], takes_ten, 5.0) == [11.0, 10.0, 19.0, 18.0]
    # The windows end at 1, 5.5 and 8: three batches of one, though two could have shared one.
    assert by_early_cut([0.0, 4.5, 7.0, 99.0], takes_ten, 1.0) == [11.0, 16.5, 24.0, 11.0]
    assert by_early_cut([0.0, 1.0, 2.0, 3.0], takes_ten, 0.5) is None
