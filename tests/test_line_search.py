"""The backtracking line search alone."""

import numpy as np
import pytest

from natgrad import _core as core

Status = core.UpdateStatus


def searched(candidates, expected=1.0, max_kl=1.0, **options):
    """Runs the search over a list of (improvement, kl); returns its result and what it tried."""
    tried = []

    def evaluate(fraction):
        tried.append(fraction)
        return candidates[len(tried) - 1]

    return core.backtracking_line_search(evaluate, expected, max_kl, **options), tried


def test_the_full_step_is_taken_when_it_is_acceptable():
    r, tried = searched([(0.9, 0.5)])
    assert r.status == core.LineSearchStatus.ACCEPTED
    assert tried == [1.0]
    assert (r.fraction, r.improvement, r.kl, r.evaluations) == (1.0, 0.9, 0.5, 1)
    assert r.message


def test_fractions_shrink_geometrically_until_one_is_acceptable():
    r, tried = searched([(-1, 0.1), (0.5, 2.0), (0.2, 0.4)], shrink=0.5)
    assert r.status == core.LineSearchStatus.ACCEPTED
    assert tried == [1.0, 0.5, 0.25]
    assert (r.fraction, r.improvement, r.kl, r.evaluations) == (0.25, 0.2, 0.4, 3)


def test_the_search_gives_up_after_max_backtracks_tries():
    r, tried = searched([(-1.0, 0.0)] * 9, shrink=0.5, max_backtracks=4)
    assert r.status == core.LineSearchStatus.LINE_SEARCH_FAILED
    assert tried == [1.0, 0.5, 0.25, 0.125]
    assert r.evaluations == 4
    assert r.fraction == 0.0
    assert r.message


def test_the_defaults_are_ten_tries_a_factor_of_eight_tenths_and_any_improvement():
    _, tried = searched([(0.0, 0.0)] * 10)
    np.testing.assert_allclose(tried, 0.8 ** np.arange(10), rtol=1e-14)
    assert searched([(1e-300, 0.0)])[0].evaluations == 1
    search = core.LineSearch()
    assert (search.shrink, search.max_backtracks, search.accept_ratio) == (0.8, 10, 0.0)


def test_a_kl_equal_to_the_bound_passes_and_one_above_does_not():
    assert searched([(1.0, 0.25)], max_kl=0.25)[0].evaluations == 1
    above = np.nextafter(0.25, 1.0)
    assert searched([(1.0, above), (1.0, 0.1)], max_kl=0.25)[0].evaluations == 2


def test_the_improvement_must_exceed_the_ratio_times_the_expected_one():
    # expected 4, ratio 0.5: more than 2 at the full step, more than 1 at half of it
    options = {"expected": 4.0, "accept_ratio": 0.5, "shrink": 0.5}
    assert searched([(2.0, 0.0), (1.5, 0.0)], **options)[0].fraction == 0.5
    assert searched([(2.1, 0.0)], **options)[0].fraction == 1.0
    assert searched([(0.0, 0.0), (1.0, 0.0), (0.6, 0.0)], **options)[0].fraction == 0.25


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_candidate_that_is_not_finite_counts_as_rejected_and_the_search_goes_on(bad):
    for candidate in [(bad, 0.0), (1.0, bad), (bad, bad)]:
        r, _ = searched([candidate, (0.5, 0.5)])
        assert r.status == core.LineSearchStatus.ACCEPTED
        assert r.evaluations == 2


def test_an_exception_in_evaluate_reaches_the_caller():
    def evaluate(fraction):
        raise ZeroDivisionError("in evaluate")

    with pytest.raises(ZeroDivisionError, match="in evaluate"):
        core.backtracking_line_search(evaluate, 1.0, 1.0)


@pytest.mark.parametrize("returned", [None, 1.0, (1.0,), (1.0, 2.0, 3.0), ("a", "b")])
def test_evaluate_must_return_two_numbers(returned):
    with pytest.raises((TypeError, ValueError), match="evaluate"):
        core.backtracking_line_search(lambda fraction: returned, 1.0, 1.0)
