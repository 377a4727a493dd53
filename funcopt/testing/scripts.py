"""Scripts that show again what a test found: with the imports that they need, and a word on what they cannot have."""

import functools
import inspect
import operator
import sys
from collections.abc import Iterator
from typing import Any

import funcopt
from funcopt import tree
from funcopt.testing.printing import fields_of, is_named_tuple, name_of, origin, source
from funcopt.transform import GradientTransformation, Params, Updates


def reproducer(params: Params, gradients: list[Updates], tx: GradientTransformation) -> str:
    """A script that runs `tx` on these values, one step for each tree of gradients, and prints each step.

    Paste it into a file, or `exec` it: at the end `params` and `state` hold the values after the last step. A function
    or a NamedTuple is imported from the module where it is defined. One that cannot be (it is local to a function, a
    lambda, or part of the script that ran) is named in a comment, and is to be defined there; so is `tx` itself if it
    was not made by a function under `funcopt.factory`.
    """
    return _script(
        (params, gradients, tx),
        {"funcopt": {"apply_updates"}},
        [
            *_case(params, gradients, tx),
            "",
            "state = tx.init(params)",
            "for step, gradient in enumerate(gradients):",
            "    updates, state = tx.update(gradient, state, params)",
            "    params = apply_updates(params, updates)",
            '    print(f"step {step}: updates = {updates}, params = {params}")',
        ],
    )


def law_reproducer(
    law: Any, params: Params, gradients: list[Updates], tx: GradientTransformation, declared: Any, extra: Any
) -> str:
    """A script that checks one law in one case: a law is a function of these alone, whatever numbers it adds."""
    arguments = {name: value for name, value in (("declared", declared), ("extra", extra)) if fields_of(value) or value}
    arguments = {name: value for name, value in arguments.items() if source(value) != "Declared()"}
    given = "".join(f", {name}={source(value)}" for name, value in arguments.items())
    return _script(
        (params, gradients, tx, law, *arguments.values()),
        {},
        [*_case(params, gradients, tx), "", f"{name_of(law.function)}(tx, params, gradients{given})"],
    )


def _script(values: Any, names: dict[str, set[str]], lines: list[str]) -> str:
    return "\n".join((*_imports(values, names), "", *lines, ""))


def _case(params: Params, gradients: list[Updates], tx: GradientTransformation) -> list[str]:
    return [
        f"params = {source(params)}",
        "gradients = [",
        *(f"    {source(gradient)}," for gradient in gradients),
        "]",
        "# define here: tx, which no funcopt.factory has made" if tx.call is None else f"tx = {source(tx)}",
    ]


def _imports(value: Any, names: dict[str, set[str]]) -> list[str]:
    missing, modules = set(), {"torch"}
    for named in _named(value):
        if isinstance(named, str):
            modules.add(named)
        elif place := _place(named):
            names.setdefault(place, set()).add(named.__qualname__.split(".")[0])
        else:
            missing.add(f"# define here: {name_of(named)}, of {named.__module__}")
    imports = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    return [*(f"import {module}" for module in sorted(modules)), *imports, *sorted(missing)]


def _place(value: Any) -> str | None:
    """The module that a function or class can be imported from, in another process too."""
    home: str = value.__module__
    public = ("funcopt", "funcopt.testing", "funcopt.testing.laws") if home.startswith("funcopt.") else ()
    for name in (*public, home):
        module = sys.modules.get(name)
        if name == "__main__" or getattr(module, "__spec__", None) is None:  # there is no file that import would find
            continue
        try:
            found = operator.attrgetter(value.__qualname__)(module)
        except AttributeError:
            continue
        same: bool = inspect.unwrap(getattr(found, "function", found)) is inspect.unwrap(value)
        if same:
            return name
    return None


def _named(value: Any) -> Iterator[Any]:
    """The functions and classes whose names occur in the source of `value`, and the names of modules."""
    value = origin(value)
    if isinstance(value, functools.partial):
        yield "functools"
        yield from _named([value.func, *value.args, *value.keywords.values()])
    elif hasattr(value, "function"):  # a call, or a law
        injected = not value.function.__name__.isidentifier()
        yield from (funcopt.inject_hyperparams, value.function.__wrapped__) if injected else (value.function,)
        yield from _named([*getattr(value, "args", ()), *getattr(value, "kwargs", {}).values()])
    elif inspect.isfunction(value) or inspect.isclass(value):
        yield value
    elif parts := fields_of(value):
        yield type(value)
        yield from _named(list(parts.values()))
    else:
        if is_named_tuple(value):
            yield type(value)
        for part in (tree.children(value) or {}).values():
            yield from _named(part)
