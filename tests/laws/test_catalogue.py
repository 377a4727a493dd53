"""The catalogue is complete, and the layers of the package are kept."""

import ast
import pathlib

import pytest

import funcopt as fo
import funcopt.optim
from tests import catalogue
from tests.catalogue import ELSEWHERE, ENTRIES, SCHEDULES

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = (
    ("numerics", "checks", "paths", "several", "stacks"),
    ("rows",),
    ("tree", "random"),
    ("calls", "ownership", "pack"),
    ("transform",),
    ("schedules", "linalg"),
    ("wrappers",),
    ("transforms", "linesearch"),
    ("rules",),
    ("elements",),
    ("replay", "turns"),
    ("compile",),
    ("update_step", "loop", "sweep", "differentiate", "distributed", "checkpoint"),
    ("optim",),
    ("testing",),
)


def listed() -> list[str]:
    return [entry.name for entry in (*ENTRIES, *SCHEDULES)] + list(ELSEWHERE)


def test_every_public_function_is_listed_once():
    public = [
        name
        for name, value in vars(fo).items()
        if not name.startswith("_") and callable(value) and not isinstance(value, type) and is_function(value)
    ]
    assert sorted(public) == sorted(listed())


def is_function(value: object) -> bool:
    return type(value).__name__ in ("function", "builtin_function_or_method")


@pytest.mark.parametrize("name, path", ELSEWHERE.items(), ids=list(ELSEWHERE))
def test_functions_tested_elsewhere_are_called_there(name, path):
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    called += [decorator for node in nodes if isinstance(node, ast.FunctionDef) for decorator in node.decorator_list]
    assert any(ast.unparse(function).split(".")[-1] == name for function in called)


def test_every_state_type_of_the_package_is_public():
    sources = [ast.parse(path.read_text()) for path in (ROOT / "funcopt").glob("**/*.py")]
    states = {
        node.name
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.ClassDef) and node.name.endswith("State") and not node.name.startswith("_")
    }
    assert states
    hidden = [name for name in states if not hasattr(fo, name) and not hasattr(fo.optim, name)]
    assert not hidden


def layer_of(module: str) -> int:
    part = module.split(".")[1]
    return next(number for number, names in enumerate(LAYERS) if part in names)


def imported_modules(path: pathlib.Path) -> list[str]:
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "funcopt":
            modules += [f"funcopt.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return modules


PACKAGE = sorted(
    path for path in (ROOT / "funcopt").glob("**/*.py") if path.parent.name != "funcopt" or path.stem != "__init__"
)


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", PACKAGE, ids=module_name)
def test_imports_point_to_lower_layers(path):
    name = module_name(path)
    for module in imported_modules(path):
        if module.startswith("funcopt.") and module.split(".")[1] != name.split(".")[1]:
            assert layer_of(module) < layer_of(name), f"{name} imports {module}"


@pytest.mark.parametrize("path", PACKAGE, ids=module_name)
def test_private_parts_of_torch_are_imported_in_one_place(path):
    private = [module for module in imported_modules(path) if module.startswith("torch") and "._" in module]
    assert private == (["torch._utils"] if module_name(path) == "funcopt.optim.in_place" else [])
    uses_pytree = "torch.utils._pytree" in path.read_text() or "_pytree" in path.read_text()
    assert not uses_pytree or module_name(path) == "funcopt.tree"


def test_cases_differ_from_the_defaults_somewhere():
    for entry in ENTRIES:
        varied = {name for case in entry.cases for name in case}
        assert set(entry.scalars) <= varied | set(), f"{entry.name}: no case sets {set(entry.scalars) - varied}"


def test_decaying_is_the_schedule_that_moves():
    assert catalogue.decaying(0) != catalogue.decaying(1)
