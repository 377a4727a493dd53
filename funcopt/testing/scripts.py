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

_NOTHING = object()


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
            *_values(params, gradients),
            f"tx = {source(tx)}",
            "",
            "state = tx.init(params)",
            "for step, gradient in enumerate(gradients):",
            "    updates, state = tx.update(gradient, state, params)",
            "    params = apply_updates(params, updates)",
            '    print(f"step {step}: updates = {updates}, params = {params}")',
        ],
    )


def law_reproducer(
    law: Any, params: Params, gradients: list[Updates], tx: GradientTransformation, declared: Any
) -> str:
    """A script that checks one law in one case: a law is a function of these alone, whatever numbers it adds."""
    told = f", {source(declared)}" if fields_of(declared) else ", None"
    subject = source(tx) if _remembers(tx.call) else _factory(tx.call)
    return _script(
        (params, gradients, tx, law, *([declared] if fields_of(declared) else [])),
        {"funcopt.testing": {"check"}},
        [*_values(params, gradients), "", f"check({subject}, [{name_of(law.function)}]{told}, params, gradients)"],
        functools_too=subject.startswith("functools."),
    )


def _remembers(call: Any) -> bool:
    """Whether what the call makes knows the call, as under `funcopt.factory`; a plain factory is handed on itself."""
    return call is None or any(hasattr(each, "__wrapped__") for each in (call.function, _found(call.function)))


def _factory(call: Any) -> str:
    given = functools.partial(call.function, *call.args, **call.kwargs)
    return source(given) if call.args or call.kwargs else name_of(call.function)


def _script(values: Any, names: dict[str, set[str]], lines: list[str], *, functools_too: bool = False) -> str:
    modules = {"torch", "functools"} if functools_too else {"torch"}
    return "\n".join((*_imports(values, names, modules), "", *lines, ""))


def _values(params: Params, gradients: list[Updates]) -> list[str]:
    return [
        f"params = {source(params)}",
        "gradients = [",
        *(f"    {source(gradient)}," for gradient in gradients),
        "]",
    ]


def _imports(value: Any, names: dict[str, set[str]], modules: set[str]) -> list[str]:
    missing = set()
    for named in _named(value):
        if isinstance(named, str):
            modules.add(named)
        elif isinstance(named, GradientTransformation):
            missing.add(f"# define here: {source(named)}, which no funcopt.factory has made")
        elif place := _place(named):
            names.setdefault(place, set()).add(named.__qualname__.split(".")[0])
        else:
            missing.add(f"# define here: {name_of(named)}, of {named.__module__}")
    imports = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    return [*(f"import {module}" for module in sorted(modules)), *imports, *sorted(missing)]


def _place(value: Any) -> str | None:
    """The module that a function or class can be imported from, in another process too."""
    home: str = value.__module__
    public = ["funcopt", "funcopt.testing", "funcopt.testing.laws"] if home.startswith("funcopt.") else []
    for name in [*public, home]:
        found = _found(value, name)
        if inspect.unwrap(getattr(found, "function", found)) is inspect.unwrap(value):
            return name
    return None


def _found(value: Any, name: str | None = None) -> Any:
    """What a module has under the name of `value`; nothing where there is no file that import would find."""
    name = value.__module__ if name is None else name
    module = sys.modules.get(name)
    if name == "__main__" or getattr(module, "__spec__", None) is None:
        return _NOTHING
    try:
        return operator.attrgetter(value.__qualname__)(module)
    except AttributeError:
        return _NOTHING


def _named(value: Any) -> Iterator[Any]:
    """The functions and classes whose names occur in the source of `value`, and the names of modules."""
    value = origin(value)
    if isinstance(value, GradientTransformation):  # of no call that is known
        yield value
    elif isinstance(value, functools.partial):
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
