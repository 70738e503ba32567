"""Tests of the offline estimate against the truth: counts, errors and verdicts computed by hand, and their display."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from drcorl_ray.report.tables import calibration
from drcorl_ray.report.tables.calibration import COLUMNS, agreements, by_task, points, verdict
from tests.helpers.results import Parsed, make_calibration, make_results, make_row, report
from tests.report.test_page import NASTY, html_of, page, shown


def one_member(
    estimates: list[Any], true: list[Any], by_k: dict[float, list[Any]] | None = None, **changes: Any
) -> dict[str, Any]:
    """An entry with one member of limit 10 and k = 2."""
    by_k = by_k or {2.0: estimates}
    shape = {"steps": list(range(len(estimates))), "cost_limits": [10.0], "members": ["0 offline"], "member_k": [2.0]}
    costs = {"true_cost": [true], "true_cost_se": [[0.5] * len(true)], "own_estimates": [estimates]}
    return make_calibration(**shape, **costs, k=list(by_k), estimates=[list(by_k.values())]) | changes


def cells(agreement: calibration.Agreement) -> dict[str, str]:
    return {column.title: column.text(agreement) for column in COLUMNS}


def test_the_table_has_the_numbers_computed_by_hand():
    """At the limit 10 a cost of 10.1 is safe; at 20, 20.0 is safe and 20.2 is not. Faults: omit the + 0.1; read null as 0."""
    trained, mean, two = agreements("PointCircle", [make_calibration()])
    assert trained.counts == Counter({(True, True): 2, (True, False): 1, (False, False): 2})
    assert mean.counts == Counter({(True, True): 2, (True, False): 2, (False, False): 1})
    assert two.counts == Counter({(True, True): 2, (False, False): 3})
    assert cells(trained) == {
        "task": "PointCircle",
        "estimate": "training k",
        "points": "5",
        "bias": "-1.4",
        "median error, ≤ 3 limits": "-2.1",
        "mean absolute error": "5.4",
        "rank correlation": "0.50",
        "truly safe of estimated safe": "2 of 3 (21–94 %)",
        "estimated unsafe of truly safe": "0 of 2 (0–66 %)",
    }
    assert (trained.bias, trained.mean_error, trained.rank_correlation) == pytest.approx((-1.44, 5.4, 0.5))
    assert (mean.estimate, mean.points) == ("k = 0 (mean critic)", 5)
    assert mean.bias == pytest.approx(-27.3 / 5)
    assert two.estimate == "k = 2"


def test_costs_far_above_the_limit_change_the_bias_but_not_the_median():
    """A cost of 30.3 is 3 limits. Two costs beyond the edge of the figure have no error there."""
    entry = one_member([8.0, 9.5, 34.3, 400.0, 400.0], [5.0, 5.0, 30.3, 500.0, 500.0])
    [trained] = agreements("", [entry])
    assert trained.bias == pytest.approx((3 + 4.5 + 4 - 100 - 100) / 5)
    assert trained.median == pytest.approx(4.0)
    *_, edge, _, far = points([entry])
    assert edge.drawn == pytest.approx((3.0, 0.5 / 10.1, 3.0))
    assert far.drawn == (3.0, 0.0, 3.0)
    assert (edge.error, far.error) == pytest.approx((0.0, 0.0))
    [below] = points([one_member([-5.0], [10.1])])
    assert (below.drawn[2], below.error) == pytest.approx((0.0, -1.0))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=calibration.FEWEST, max_size=12))
def test_the_rank_correlation_equals_scipys_with_ties(pairs):
    estimates, true = (list(map(float, costs)) for costs in zip(*pairs, strict=True))
    [agreement] = agreements("", [one_member(estimates, true)])
    if len(set(estimates)) == 1 or len(set(true)) == 1:
        assert agreement.rank_correlation is None
    else:
        assert agreement.rank_correlation == pytest.approx(spearmanr(estimates, true)[0])


def test_the_rank_correlation_uses_normalised_costs():
    """Members with limits 10 and 1000 are ordered correctly only after normalisation. Fault: rank the raw costs."""
    small, large = one_member([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), one_member([4.0, 5.0, 6.0], [700.0, 800.0, 900.0])
    small["cost_limits"], large["cost_limits"] = [10.0], [1000.0]
    large |= {"own_estimates": [[500.0, 600.0, 1000.0]]}
    [agreement] = agreements("", [small, large])
    assert agreement.rank_correlation == pytest.approx(1.0)


def test_an_entry_without_points_has_no_numbers():
    entry = one_member([None, 3.0], [1.0, None])
    [trained] = agreements("A", [entry])
    assert set(list(cells(trained).values())[3:]) == {"–", "none"}
    assert COLUMNS[-2].safe(trained) is None
    assert verdict("A", [entry]).word == "too few points"


def test_every_k_of_every_entry_is_used_with_its_member():
    """The winners of two studies have different lists of k. Fault: take the index of a k from the first entry."""
    first = one_member([1.0, 2.0], [1.0, 1.0], {0.0: [0.5, 0.6], 2.0: [1.0, 2.0]}, label="A 7")
    second = make_calibration(label="A 9", k=[4.0, 0.0])
    assert [row.estimate for row in agreements("A", [first, second])] == [
        "training k", "k = 0 (mean critic)", "k = 2", "k = 4",
    ]  # fmt: skip
    assert [(point.member, point.estimate) for point in points([first, second], 0.0)][:4] == [
        ("A 7", 0.5), ("A 7", 0.6), ("A 9, member 0 offline", 15.0), ("A 9, member 0 offline", 8.0),
    ]  # fmt: skip
    members = [point.member for point in points([first, second], 4.0)]
    assert members == ["A 9, member 0 offline"] * 3 + ["A 9, member 1 hybrid"] * 2
    assert {(point.member, point.k) for point in points([make_calibration()])} == {
        ("member 0 offline", 2.0), ("member 1 hybrid", 1.0),
    }  # fmt: skip
    assert [row.estimate for row in agreements("A", [first])] == ["training k = 2", "k = 0 (mean critic)"]


@pytest.mark.parametrize(
    ("estimates", "true", "word", "reason"),
    [
        ([5.0] * 4, [1.0, 1.0, 1.0, 30.0], "too few points", "Policies with both costs: 4;"),
        ([8.0] * 9 + [31.0], [3.0] * 9 + [25.0], "yes", "9 of 10 policies; all of them are safe. "
         "For true costs up to 3 limits, the estimate is typically 5.0 too high (median)."),
        ([5.0] * 9, [5.0] * 6 + [15.0] * 3, "no", "9 of 9 policies; 3 of them are UNSAFE. "),
        ([5.0] * 10, [5.0] * 9 + [15.0], "yes", "10 of 10 policies; 1 of them is UNSAFE. "
         "For true costs up to 3 limits, the estimate is typically correct (median)."),
        ([5.0] * 9, [5.0] * 8 + [15.0], "no", "1 of them is UNSAFE. "),
        ([5.0] + [40.0] * 5, [90.0] * 6, "no", "1 of 6 policies; 1 of them is UNSAFE. "
         "Prefer evaluation.mode = online or hybrid."),
        ([5.0] * 6, [7.0] * 6, "not tested", "typically 2.0 too low (median). No policy is truly unsafe"),
        ([20.0] * 6, [1.0] * 5 + [30.0], "too cautious", "safe for none of 6 policies. "),
        ([5.0, 20.0, 20.0, 30.0], [1.0, 1.0, 1.0, 30.0], "too few points", "4"),
        ([5.0, 5.0, 20.0, 20.0, 20.0], [1.0, 1.0, 30.0, 30.0, 30.0], "too few estimated safe",
         "2 of 5 policies; all of them are safe. "),
        ([20.0] * 5, [30.0] * 5, "too few estimated safe", "safe for none of 5 policies"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_counts(estimates, true, word, reason):
    """Faults: trust an estimate that was never tested on an unsafe policy; tolerate more than one error in ten."""
    answer = verdict("A", [one_member(estimates, true)])
    assert answer.word == word
    assert reason in answer.reason
    assert answer.style == {"yes": "good", "no": "bad", "too cautious": "doubtful"}.get(word, "unknown")


def test_the_verdict_names_a_k_that_would_have_been_better():
    true = [1.0] * 6 + [30.0] * 3
    better, worse = [5.0] * 6 + [40.0] * 3, [5.0] * 9
    entry = one_member(worse, true, {0.0: worse, 2.0: worse, 4.0: better})
    assert verdict("A", [entry]).reason.endswith(
        "or hybrid. In hindsight, k = 4 would have been better: 6 of its 6 policies estimated safe are safe."
    )
    assert "hindsight" not in verdict("A", [one_member(worse, true, {0.0: worse, 4.0: worse})]).reason
    cautious = [40.0] * 9
    entry = one_member(cautious, true, {0.0: better, 1.0: [5.0] * 5 + [40.0] * 4, 2.0: cautious, 4.0: cautious})
    assert verdict("A", [entry]).reason.endswith(
        "wasted. In hindsight, k = 0 (mean critic) would have been better: 6 of its 6 policies estimated safe are safe."
    )
    few = [5.0] * 4 + [40.0] * 5
    assert "hindsight" not in verdict("A", [one_member(cautious, true, {0.0: few, 2.0: cautious})]).reason


def test_good_and_bad_shares_are_marked():
    """One correct policy is not enough to mark the share as good; one wrong policy marks it as bad."""
    marks = [
        COLUMNS[-2].safe(agreements("", [one_member([5.0] * count, [1.0] * right + [30.0] * (count - right))])[0])
        for count, right in ((1, 1), (5, 5), (1, 0), (5, 4))
    ]
    assert marks == [None, True, False, False]


@pytest.mark.parametrize(
    "about", [{}, {"calibration": []}, {"calibration": None}, {"calibration": [make_calibration(steps=[])]}]
)
def test_a_run_without_calibration_has_no_section(tmp_path, about):
    results = make_results([make_row()], **about)
    assert by_task(results) == {}
    texts = report(tmp_path, results)
    assert all(calibration.TITLE not in text for text in texts.values())
    assert not (tmp_path / "calibration.png").exists()


def test_the_markdown_report_has_verdict_picture_and_table(tmp_path):
    entries = [make_calibration(task="B|b"), make_calibration(task="A"), make_calibration(task="A", label="<A> 3")]
    text = report(tmp_path, make_results([make_row(task="A")], calibration=entries))["report.md"]
    section = text.split(f"## {calibration.TITLE}")[1]
    assert "](calibration.png)" in section
    assert "- A: **no**. The estimate with training k is safe for 6 of 10 policies; 2 of them are UNSAFE." in section
    assert "- B\\|b: **no**. The estimate with training k is safe for 3 of 5" in section
    lines = [line.replace("\\|", "¦").strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {len(COLUMNS)}
    assert [line[:3] for line in lines[2:]] == [
        ["A", "training k", "10"], ["A", "training k, limit 10", "6"], ["A", "training k, limit 20", "4"],
        ["A", "k = 0 (mean critic)", "10"], ["A", "k = 2", "10"],
        ["B¦b", "training k", "5"], ["B¦b", "training k, limit 10", "3"], ["B¦b", "training k, limit 20", "2"],
        ["B¦b", "k = 0 (mean critic)", "5"], ["B¦b", "k = 2", "5"],
    ]  # fmt: skip


def test_each_limit_has_its_own_errors():
    """Estimate − truth is −5, −2.1 and 5.1 at limit 10; −10 and 4.8 at 20. A single limit has no row of its own."""
    entry = make_calibration()
    assert [row.bias for row in calibration.table("A", [entry])[1:3]] == pytest.approx([-2.0 / 3, -2.6])
    assert len(calibration.table("A", [one_member([1.0], [2.0])])) == 1


def test_the_scatter_of_the_page_shows_every_policy_in_its_quadrant(tmp_path):
    """Faults: swap the axes; draw costs outside the figure; show the count of another quadrant."""
    entry = make_calibration(true_cost=[[20.0, 10.1, 5.0], [80.4, 20.2, None]])
    figure = page(tmp_path, make_results([make_row()], calibration=[entry])).titled("PointCircle: estimate against truth")
    *others, trained = figure["data"]
    assert [(trace["name"], trace["visible"]) for trace in others] == [
        ("k = 0 (mean critic)", "legendonly"), ("k = 2", "legendonly"),
    ]  # fmt: skip
    assert trained["x"] == pytest.approx([20 / 10.1, 1, 5 / 10.1, 3, 20.2 / 20.1])
    assert trained["y"] == pytest.approx([15 / 10.1, 8 / 10.1, 1, 20 / 20.1, 25 / 20.1])
    assert trained["error_x"]["array"] == pytest.approx([2 / 10.1, 1 / 10.1, 0.5 / 10.1, 0, 2 / 20.1])
    assert trained["marker"]["symbol"] == ["circle"] * 3 + ["triangle-right", "circle"]
    grey, green, red = trained["marker"]["color"][0], trained["marker"]["color"][1], trained["marker"]["color"][3]
    assert trained["marker"]["color"] == [grey, green, green, red, grey]
    assert len({grey, green, red}) == 3
    assert trained["text"][3] == (
        "member 1 hybrid, step 10<br>estimated cost 20.0 with k = 1<br>true cost 80.4 ± 3.0, limit 20<br>"
        "estimated safe, truly UNSAFE"
    )
    notes = {(note["xanchor"], note["yanchor"]): re.sub("<.*?>", "", note["text"]) for note in figure["layout"]["annotations"]}
    assert notes == {
        ("left", "bottom"): "2 estimated safe, truly safe",
        ("right", "bottom"): "1 estimated safe, truly UNSAFE",
        ("left", "top"): "0 estimated unsafe, truly safe",
        ("right", "top"): "2 estimated unsafe, truly unsafe",
    }
    dangerous = next(shape for shape in figure["layout"]["shapes"] if shape.get("fillcolor") == red)
    assert (dangerous["x0"], dangerous["y1"]) == (1, 1)


def test_the_page_draws_the_errors_of_every_member(tmp_path):
    figure = page(tmp_path, make_results([make_row()], calibration=[make_calibration()])).titled(
        "PointCircle: estimation error during training"
    )
    first, second, wrong = figure["data"]
    assert (first["name"], first["x"]) == ("member 0 offline", [10, 20, 30])
    assert first["y"] == pytest.approx([-5 / 10.1, -2.1 / 10.1, 5.1 / 10.1])
    assert (second["name"], second["x"]) == ("member 1 hybrid", [10, 20])
    assert (wrong["x"], wrong["y"]) == ([10], [pytest.approx(-10 / 20.1)])


def test_the_page_has_a_verdict_per_task_and_tags_its_parts_for_the_chooser(tmp_path):
    entries = [make_calibration(task=task) for task in "BA"]
    results = make_results([make_row(task=task) for task in "AB"], calibration=entries)
    section = html_of(tmp_path, results).split(f"<h2>{calibration.TITLE}")[1].split("</section>")[0]
    assert re.findall(r'data-tasks="([^"]*)"', section) == list("01") + list("0011") + list("0000011111")
    assert section.count('class="answer bad"') == 2
    parsed = page(tmp_path, results)
    [answers] = [table for table in parsed.tables if table[0][0].startswith("A:")]
    assert [line[0] for line in answers] == ["A: no", "B: no"]
    names = ["training k", "training k, limit 10", "training k, limit 20", "k = 0 (mean critic)", "k = 2"]
    assert [line["estimate"] for line in shown(parsed, -1)] == names * 2
    assert shown(parsed, -1)[0]["truly safe of estimated safe"] == "2 of 3 (21–94 %)"
    assert parsed.classes[-1][1][-2] == "unsafe"


def test_hostile_names_are_escaped(tmp_path):
    """Fault: omit one `escape` of the labels, the members or the task."""
    entry = make_calibration(task=NASTY, label=NASTY, members=[NASTY, "1"])
    text = html_of(tmp_path, make_results([make_row(task=NASTY)], calibration=[entry]))
    assert text.count("<script") == text.count("</script>")
    parsed = Parsed(text)
    assert parsed.tables[-1][1][0] == NASTY
    assert any(table[0][0] == f"{NASTY}: no" for table in parsed.tables)
    drawn = str(parsed.figures)
    assert "<img" not in drawn
    assert drawn.count("&lt;/script&gt;&lt;img") > 10


def test_only_offline_members_are_judged():
    """The second member adapts by rollouts, so its points do not count. Without an offline member all points count."""
    entry = make_calibration(modes=["offline", "hybrid"])
    [trained, *_] = calibration.agreements("PointCircle", [entry])
    assert (trained.points, trained.estimated_safe, trained.counts[True, False]) == (3, 2, 0)
    both = make_calibration(modes=["online", "hybrid"])
    assert calibration.agreements("PointCircle", [both])[0].points == 5
    assert calibration.agreements("PointCircle", [both, entry])[0].points == 3
