"""Configurations that are evaluated again on fresh episodes, by hand."""

from drcorl_ray.search.winners import finalists


def test_every_cost_limit_has_its_own_finalists():
    """The tightest limit comes first. Fault: take the best over all limits, which belong to the loosest limit."""
    ranking, limits = [4, 0, 2, 5, 1, 3], {0: 10.0, 1: 10.0, 2: 40.0, 3: 10.0, 4: 40.0, 5: 40.0}
    assert finalists(ranking, limits, 2) == {10.0: [0, 1], 40.0: [4, 2]}
    assert list(finalists(ranking, limits, 2)) == [10.0, 40.0]
    assert finalists([], {}, 3) == {}
