"""The classes of torch under the laws of funcopt.testing, and what they find there (torch 2.13)."""

import pytest
import torch

import funcopt as fo
from funcopt.optim import functionalize
from funcopt.testing import LAWS, Declared, fixed_case, violations
from funcopt.testing.modes import compiled_hyperparameters
from funcopt.testing.trajectory import generic

pytestmark = pytest.mark.slow

PLAIN, DECAYS = Declared(descends=True, complex=False), Declared(descends=True, complex=False, zero_fixpoint="at zero")
HALVES, ZERO, FLAT = "half_precision", "zero_gradients", "derivatives_finite_at_zero"
SCALARS = {"surroundings", "tensors_mean_numbers"}
NOT_VMAPPED = {"vmap_over_models", "vmap_over_hyperparameters"}
NO_RATE = {FLAT, "derivative_in_hyperparameters"}
UNDERIVABLE = {*NO_RATE, "derivative_in_gradients", "derivative_in_params"}
FOUND = {
    "SGD": (PLAIN, {HALVES}),
    "Adam": (PLAIN, {HALVES, ZERO, FLAT}),
    "AdamW": (DECAYS, {HALVES, ZERO, FLAT}),
    "Adamax": (PLAIN, {HALVES, ZERO}),
    "NAdam": (PLAIN, {HALVES, ZERO, FLAT, *SCALARS, *NOT_VMAPPED}),
    "RAdam": (PLAIN, {HALVES, *NOT_VMAPPED, "compiled"}),
    "RMSprop": (PLAIN, {HALVES, ZERO, FLAT}),
    "Rprop": (PLAIN, {HALVES, *NOT_VMAPPED, *NO_RATE, "compiled"}),
    "Adadelta": (PLAIN, {HALVES, "float32_accuracy"}),
    "Adagrad": (PLAIN, {HALVES, ZERO, FLAT}),
    "ASGD": (DECAYS, {HALVES, *SCALARS, *NOT_VMAPPED, *NO_RATE, "compiled"}),
    "Adafactor": (PLAIN, {HALVES, *NOT_VMAPPED, *UNDERIVABLE, "compiled"}),
    "Muon": (DECAYS, {HALVES, *NOT_VMAPPED, *UNDERIVABLE}),
}
"""What is declared of a class, and the laws that it breaks.

- half_precision: states are kept in the parameters' dtype; and an update is a difference of two parameters, which is
  zero where a bfloat16 parameter does not move.
- zero_gradients: ε = 1e-8 is zero in float16, and the update 0 / 0.
- derivatives_finite_at_zero: the derivative of the root of a second moment is infinite at 0, or there is none.
- surroundings, tensors_mean_numbers: `mu_product`, `eta` and `mu` have the default dtype, float32 or float64.
- vmap: NAdam and Muon do get through, to the precision of float32 and bfloat16; the others branch on numbers.
- float32_accuracy: √(E + ε) of a second moment that has just left 0 cancels.
"""
LEFT_OUT = [compiled_hyperparameters]  # init is not compiled
ONLY_MATRICES = ("structure_is_kept", "empty_trees")


def transformation(name):
    def make(lr: float = 0.1):
        return functionalize(getattr(torch.optim, name), lr=lr)

    make.__name__ = name
    return fo.factory(make)()


def case(name):
    """Adafactor divides by the size of a parameter; Muon takes only matrices."""
    if name not in ("Adafactor", "Muon"):
        return fixed_case()
    like = [torch.empty(3, 4), torch.empty(4, 2)]
    return generic(like, 1), [generic(like, 2 + i) for i in range(3)]


@pytest.mark.parametrize("name", FOUND)
def test_laws(name):
    declared, broken = FOUND[name]
    laws = [
        law for law in LAWS if law not in LEFT_OUT and not (name in ("Adafactor", "Muon") and law.name in ONLY_MATRICES)
    ]
    found = {v.law: str(v) for v in violations(transformation(name), laws, declared, *case(name))}
    assert set(found) == broken, "\n\n".join(found[law] for law in sorted(set(found) - broken)) or broken - set(found)
