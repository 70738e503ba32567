"""Every file, folder, function and link that README, CONTRIBUTING, docs/ and tests/README.md name exists in the checkout."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (".ci", "benchmarks", "docs", "drcorl_ray", "examples", "launch", "tests", "tune_configs")
NOT_HERE = {  # a run's directory has these, or a user's own project
    "config.yaml", "curves/", "baselines/", "members/", "online/", "packs/", "policies/", "pretraining/", "ray/", "states/",
    "studies/", "videos/", "wandb/", "my_algorithm.py",
}  # fmt: skip

FILE = re.compile(r"(?<![\w./~-])([\w.-]+(?:/[\w.-]+)*\.(?:py|yaml))\b(?!/)")
FOLDER = re.compile(r"(?<![\w./:~-])((?:[\w.-]+/)+)(?=[`\s|,;:)]|$)", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")
FUNCTIONS = re.compile(r"`([\w/]+\.py)`: (`\w+`(?:, `\w+`)*)")
PLACEHOLDER = re.compile(r"(^|/)[A-Z][\w-]*(/|\.yaml$|\.py$)")  # RUN/…, members/ID.yaml


def checkout() -> list[str]:
    """Paths of all files and, with a slash at the end, folders."""
    paths = [path for folder in FOLDERS for path in [ROOT / folder, *(ROOT / folder).rglob("*")] if path.exists()]
    paths += [path for path in ROOT.iterdir() if path.is_file()]
    return [f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in paths if "__pycache__" not in path.parts]


def places(name: str, paths: list[str]) -> list[str]:
    """The paths that a name means: from the root or the package, else every path that ends in it."""
    exact = [path for path in (name, f"drcorl_ray/{name}") if path in paths]
    return exact[:1] or [path for path in paths if path.endswith(f"/{name}")]


def named(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers, and the files and folders that the lines name."""
    for number, line in enumerate(text.splitlines(), start=1):
        bare = LINK.sub("", line)
        for name in [*FILE.findall(bare), *FOLDER.findall(bare)]:
            if name not in NOT_HERE and not PLACEHOLDER.search(name):
                yield number, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page):
    paths = checkout()
    wrong = [
        f"line {number}: {name} is {'ambiguous: ' + ', '.join(found) if found else 'nowhere'}"
        for number, name in named(page.read_text(encoding="utf-8"))
        if len(found := places(name, paths)) != 1
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_function_that_a_page_names_is_in_its_file():
    paths, checked = checkout(), 0
    for page in PAGES:
        for name, functions in FUNCTIONS.findall(page.read_text(encoding="utf-8")):
            [path] = places(name, paths)
            for function in re.findall(r"\w+", functions):
                source = (ROOT / path).read_text(encoding="utf-8")
                assert re.search(rf"^\s*(def|class) {function}\b", source, re.MULTILINE), f"{path} has no {function}"
                checked += 1
    assert checked > 20  # docs/method.md alone names more


def test_the_table_of_faults_has_the_lines_of_its_tests():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    module = ast.parse((ROOT / "tests" / "faults" / "test_matrix.py").read_text(encoding="utf-8"))
    tests = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    for test in tests:
        cells = [" ".join(cell.split()) for cell in (ast.get_docstring(test) or "").split("|")]
        assert f"| {' | '.join(cells)} |" in page, test.name
    assert tests


def test_wrong_names_are_found():
    paths = ["launch/train.py", "drcorl_ray/commands/train.py", "drcorl_ray/method/", "drcorl_ray/method/actor.py"]
    text = "`method/actor.py`, `actor.py`, `launch/train.py`; `train.py`, `method/policy.py`, `envs/`, RUN/online/, x/y.yaml"
    assert {name: len(places(name, paths)) for _, name in named(text)} == {
        "method/actor.py": 1, "actor.py": 1, "launch/train.py": 1,
        "train.py": 2, "method/policy.py": 0, "envs/": 0, "x/y.yaml": 0,
    }  # fmt: skip
