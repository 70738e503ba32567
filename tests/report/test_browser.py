"""report.html in a real headless browser, from file://: everything is drawn, nothing is complained about."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.runs import MadeSearch, make_calibration, make_curve, make_results, make_row, report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"needs a browser on PATH: {', '.join(BROWSERS)} (apt-get install chromium)"),
]


def opened(page: Path, profile: Path, height: int = 12000) -> tuple[str, list[str]]:
    """The page's elements after its scripts ran, and what the console said; without any network."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    command += [f"--window-size=1366,{height}", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")
    result = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=200, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def drawn(dom: str) -> tuple[int, int]:
    """(figures, figures that plotly has drawn)."""
    return len(re.findall(r'class="plot [^"]*"', dom)), len(re.findall(r'class="plot [^"]*js-plotly-plot', dom))


@pytest.mark.parametrize("kind", ["search", "multi_objective", "training"])
def test_the_page_draws_everything_and_the_console_is_silent(tmp_path, kind):
    run = tmp_path / "a run"
    if kind == "training":
        results = make_results([make_row(), make_row(member=1)], curves=[make_curve()], calibration=[make_calibration()])
    else:
        results = MadeSearch(run, ("A", "B"), 20, multi_objective=kind == "multi_objective", shared=True).results
    report(run, results)
    dom, console = opened(run / "report.html", tmp_path / "profile")
    assert console == []
    figures, done = drawn(dom)
    assert figures == done == {"search": 11, "multi_objective": 12, "training": 5}[kind]
    assert dom.count('class="main-svg"') >= figures
    assert dom.count('class="scatterlayer') >= 2


def test_what_the_page_would_load_is_refused_and_seen(tmp_path):
    """The check above can fail: a script from elsewhere, and an error of a script."""
    text = report(tmp_path, make_results([make_row()]))["report.html"]
    page = tmp_path / "faulty.html"
    page.write_text(text.replace("</body>", '<script src="https://cdn.plot.ly/x.js"></script><script>gone()</script></body>'))
    _, console = opened(page, tmp_path / "profile")
    assert any("Content Security Policy" in line and "cdn.plot.ly" in line for line in console)
    assert any("gone is not defined" in line for line in console)


def test_a_task_is_chosen_and_the_table_sorted(tmp_path):
    """Choose the second task, sort by reward twice. Fault: sort as text (-0.5 after -0.1), or hide the wrong task."""
    made = MadeSearch(tmp_path, ("A", "B"), 12, score=lambda params: (params["k"] * 5 - 8, 0.5))
    text = report(tmp_path, made.results)["report.html"]
    clicks = """
    {
      const chooser = document.getElementById("task");
      chooser.value = "1";
      chooser.dispatchEvent(new Event("change"));
      const heads = [...document.querySelectorAll(".sortable th")];
      const reward = heads.findIndex((head) => head.textContent === "reward");
      const column = () => [...document.querySelectorAll(".sortable tbody tr:not([hidden])")]
        .map((row) => row.cells[reward].textContent).join(" ");
      heads[reward].click();
      const first = column();
      heads[reward].click();
      document.title = first + ";" + column();
    }
    """
    page = tmp_path / "clicked.html"
    page.write_text(text.replace("</body>", f"<script>{clicks}</script></body>"), encoding="utf-8")
    dom, console = opened(page, tmp_path / "profile")
    assert console == []
    expected = sorted(row["normalized_reward"] for row in made.rows if row["task"] == "B" and row.get("selection") == "last")
    expected = [f"{reward:.3f}" for reward in expected if reward != 0.4]  # the clone's
    found = re.search("<title>(.*?)</title>", dom)
    assert found is not None
    rising, falling = found[1].split(";")
    assert rising.split() == expected
    assert falling.split() == expected[::-1]
    hidden = [tag for tag in re.findall(r"<div[^>]*data-tasks[^>]*>", dom) if "hidden" in tag]
    assert len(hidden) == 6
    assert all('data-tasks="0"' in tag for tag in hidden)
