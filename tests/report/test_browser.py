"""Tests of report.html in a headless browser, from file://: everything is drawn and the console stays empty."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from playwright.sync_api import sync_playwright

from tests.helpers.results import MadeSearch, make_calibration, make_curve, make_results, make_row, report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
DRAWN = ".plot.js-plotly-plot .main-svg"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"needs a browser on PATH: {', '.join(BROWSERS)} (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        args = ["--host-resolver-rules=MAP * ~NOTFOUND", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=args, timeout=120_000)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Return a function that opens a file without network as (page, its console messages and script errors so far)."""

    def open_page(path):
        page, complaints = browser.new_page(viewport={"width": 1366, "height": 12000}), []
        page.set_default_timeout(60_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        return page, complaints

    return open_page


@pytest.mark.parametrize(("kind", "figures"), [("search", 11), ("multi_objective", 12), ("training", 5)])
def test_the_page_draws_everything_and_the_console_is_silent(opened, tmp_path, kind, figures):
    run = tmp_path / "a run"
    if kind == "training":
        results = make_results([make_row(), make_row(member=1)], curves=[make_curve()], calibration=[make_calibration()])
    else:
        results = MadeSearch(run, ("A", "B"), 20, multi_objective=kind == "multi_objective", shared=True).results
    report(run, results)
    page, complaints = opened(run / "report.html")
    assert page.locator(".plot").count() == figures
    for figure in page.locator(".plot").all():
        figure.locator(".main-svg").first.wait_for(state="attached")
    assert page.locator(DRAWN).count() >= figures
    assert page.locator(".scatterlayer").count() >= 2
    assert complaints == []


def test_external_scripts_and_script_errors_are_noticed(opened, tmp_path):
    """This shows that the test above can fail. Faults: a script from another site; an error in a script."""
    text = report(tmp_path, make_results([make_row()]))["report.html"]
    faulty = tmp_path / "faulty.html"
    faulty.write_text(
        text.replace("</body>", '<script src="https://cdn.plot.ly/x.js"></script><script>gone()</script></body>')
    )
    _, complaints = opened(faulty)
    assert any("Content Security Policy" in line and "cdn.plot.ly" in line for line in complaints)
    assert any("gone is not defined" in line for line in complaints)


def test_the_page_filters_by_task_and_sorts_its_table(opened, tmp_path):
    """Choose the second task and sort by reward twice. Faults: sort as text (-0.5 after -0.1); hide the wrong task."""
    made = MadeSearch(tmp_path, ("A", "B"), 12, score=lambda params: (params["k"] * 5 - 8, 0.5))
    report(tmp_path, made.results)
    page, complaints = opened(tmp_path / "report.html")
    page.select_option("#task", "1")
    for part in page.locator("summary:visible").all():
        part.click()
    head = page.locator(".sortable th").filter(has_text=re.compile("^reward$"))
    column = head.evaluate("(head) => head.cellIndex")
    shown = page.locator(f".sortable tbody tr:not([hidden]) td:nth-child({column + 1})")
    expected = sorted(row["normalized_reward"] for row in made.rows if row["task"] == "B" and row.get("selection") == "last")
    expected = [f"{reward:.3f}" for reward in expected if reward != 0.4]  # the clone's
    head.click()
    assert shown.all_text_contents() == expected
    head.click()
    assert shown.all_text_contents() == expected[::-1]
    hidden = page.locator("div[data-tasks][hidden]")
    assert hidden.count() == 6
    assert all(part.get_attribute("data-tasks") == "0" for part in hidden.all())
    assert complaints == []
