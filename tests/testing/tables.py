"""The tables of docs/testing.md, made from the code: what the laws say, what can be declared, what catches what.

    python -m tests.testing.tables

prints all but the one of mutants, which `python -m tests.testing.mutants` prints.
"""

import dataclasses
import inspect
import re

import torch

import funcopt as fo
from funcopt.testing import LAWS, Declared, Law

DECLARATIONS: dict[str, Declared] = {
    'coupling="leafwise"': Declared(coupling="leafwise"),
    'coupling="treewise"': Declared(coupling="treewise"),
    "hyperparameters=()": Declared(hyperparameters=()),
    "differentiable=False": Declared(differentiable=False),
    "complex=False": Declared(complex=False),
    "order_matters=True": Declared(order_matters=True),
    "fixed_structure=True": Declared(fixed_structure=True),
    "stored_in=torch.bfloat16": Declared(stored_in=torch.bfloat16),
    "float32_tolerance=None": Declared(float32_tolerance=None),
    "odd=False": Declared(odd=False),
    "descends=True": Declared(descends=True),
    "scale=...": Declared(scale="equivariant"),
    "linear=True": Declared(linear=True),
    "orthogonal=True": Declared(orthogonal=True),
    "idempotent=True": Declared(idempotent=True),
    "bounded=...": Declared(bounded=1.0),
    "norm_bounded=...": Declared(norm_bounded=1.0),
    "magnitude=...": Declared(magnitude=1.0),
    "direction=...": Declared(direction="tree"),
    "reference=...": Declared(reference=fo.identity()),
    "absorbs=...": Declared(absorbs=(float("nan"),)),
    "accumulates=...": Declared(accumulates=(2, fo.identity())),
}
"""What may switch a law on or off, in the words of the page."""


def applies_when(law: Law) -> str:
    """Always, or what switches the law off, or on, for an optimizer that couples nothing."""
    tx = fo.adam(0.1)
    usual = law.applies(tx, Declared())
    switches = [f"`{words}`" for words, declared in DECLARATIONS.items() if law.applies(tx, declared) != usual]
    return ("unless " if usual else "with ") + " or ".join(switches) if switches else "always"


def laws() -> str:
    rows = [f"| `{law.name}` | {law.statement} | {applies_when(law)} |" for law in LAWS]
    return "\n".join(["| law | what it says | applies |", "|---|---|---|", *rows])


def declarations() -> str:
    """The fields of `Declared` with their defaults, and what its docstring says of each."""
    told = inspect.cleandoc(Declared.__doc__).split("Attributes:\n")[1]
    paragraphs = re.split(r"\n\n?    (?=\w+: )", "\n" + told.rstrip())[1:]
    meanings = dict(re.sub(r"\s+", " ", paragraph).split(": ", 1) for paragraph in paragraphs)
    fields = dataclasses.fields(Declared)
    rows = [f"| `{field.name}` | `{field.default!r}` | {meanings[field.name]} |" for field in fields]
    return "\n".join(["| field | default | what it says |", "|---|---|---|", *rows])


def optax_findings() -> str:
    """What the laws find in optax; its tests see that it is so."""
    from tests.testing.test_optax import FINDINGS

    rows = [
        f"| `{name}` | {', '.join(f'`{law}`' for law in sorted(broken)) or 'none'} |"
        for name, (_, _, broken) in FINDINGS.items()
    ]
    return "\n".join(["| optax 0.2.8 | laws that do not hold |", "|---|---|", *rows])


def torch_findings() -> str:
    """What the laws find in torch.optim, made pure by `functionalize`; its tests see that it is so."""
    from tests.optim.test_functionalize_laws import FOUND

    rows = [f"| `{name}` | {', '.join(f'`{law}`' for law in sorted(broken))} |" for name, (_, broken) in FOUND.items()]
    return "\n".join(["| torch.optim 2.13 | laws that do not hold |", "|---|---|", *rows])


if __name__ == "__main__":
    print(laws(), declarations(), optax_findings(), torch_findings(), sep="\n\n")
