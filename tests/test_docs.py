"""What the pages say holds: every block and example runs, links resolve, and the tables agree with the code."""

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import funcopt as fo
from tests.catalogue import ENTRIES, SCHEDULES
from tests.trees import draw

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = ["funcopt", *(module.name for module in pkgutil.walk_packages(fo.__path__, "funcopt."))]
TABLES = (ROOT / "docs" / "optimizers.md").read_text()

FENCE = re.compile(r"^```(.*)\n((?:(?!^```).*\n)*)^```$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# ------------------------------------------------------------------------------------------------------ blocks


@pytest.fixture
def namespace(page, monkeypatch, tmp_path):
    """The variables of a page: those of a module, which pickle and the compiler can look up; files go to `tmp_path`."""
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")  # a name of its own: the compiler remembers names
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    with torch.random.fork_rng():
        yield vars(module)
    torch._dynamo.reset()


def run_examples(source, namespace, name, line):
    test = doctest.DocTestParser().get_doctest(source, {}, name, name, line)
    test.globs = namespace
    report = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)
    return len(test.examples)


@every_page
def test_every_block_runs(page, namespace):
    text = page.read_text()
    for fence in FENCE.finditer(text):
        language, source = fence.groups()
        line = text[: fence.start(2)].count("\n")
        if language != "python":
            assert language in ("bash", "text") and ">>>" not in source, f"{page.name}, line {line}"
        elif source.startswith(">>>"):
            run_examples(source, namespace, str(page), line)
        else:
            assert ">>>" not in source, f"{page.name}, line {line + 1}: statements and examples belong in two blocks"
            exec(compile("\n" * line + source, str(page), "exec"), namespace)


@every_page
def test_every_fence_is_found(page):
    fences = [line for line in page.read_text().splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == 2 * len(FENCE.findall(page.read_text()))


def train_step(params, state, batch):
    """A name for examples that are about what is done with a step."""


@pytest.mark.parametrize("name", MODULES)
def test_every_example_in_a_docstring_runs(name):
    module = importlib.import_module(name)
    public = {key: value for key, value in vars(fo).items() if not inspect.ismodule(value)}
    found = doctest.DocTestFinder().find(module, globs={})
    expected = Path(module.__file__).read_text().count(">>> ")
    names = {
        **vars(module),
        **public,
        "fo": fo,
        "funcopt": fo,
        "tree": fo.tree,
        "torch": torch,
        "train_step": train_step,
    }
    ran = [run_examples(part.docstring, dict(names), part.name, part.lineno or 0) for part in found if part.examples]
    assert sum(ran) == expected


# ------------------------------------------------------------------------------------------------------- links


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_resolves(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        destination = page.parent / file if file else page
        assert destination.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(destination), f"{page.name}: {target}"


@every_page
def test_every_name_in_the_library_exists(page):
    for name in re.findall(r"\bfo((?:\.[A-Za-z_]\w*)+)", page.read_text()):
        value = fo
        for part in name.split(".")[1:]:
            assert hasattr(value, part), f"{page.name}: fo{name}"
            value = getattr(value, part)


def test_the_options_of_the_example_exist():
    options = re.findall(r"`(--[a-z-]+)", (ROOT / "README.md").read_text())
    source = (ROOT / "examples" / "train_digits.py").read_text()
    assert options and all(f'"{option}"' in source for option in options)


# ------------------------------------------------------------------------------------------------------ tables

ROWS = {
    cells[1].strip(" `"): [cell.strip() for cell in cells[2:-1]]
    for cells in (re.split(r"(?<!\\)\|", line) for line in TABLES.splitlines())
    if len(cells) > 2 and cells[1].strip().startswith("`")
}
"""The rows of docs/optimizers.md by the name in their first cell."""


def test_everything_listed_has_a_row_and_every_row_a_name():
    assert {entry.name for entry in (*ENTRIES, *SCHEDULES)} <= set(ROWS)
    assert all(callable(getattr(fo, name)) for name in ROWS)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_the_row_of_a_transformation_is_right(entry):
    """The last two cells: whether `update` needs params, and the coupling."""
    transformation = entry.make(**entry.cases[0])
    *_, needs_params, coupling = ROWS[entry.name]
    assert coupling == transformation.coupling
    state = transformation.init(draw(1))
    if needs_params == "yes":
        with pytest.raises(ValueError, match="needs the parameters"):
            transformation.update(draw(2), state)
    else:
        assert needs_params == "no"
        transformation.update(draw(2), state)
