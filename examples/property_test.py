"""A wrong Adam that trains, what the laws of `funcopt.testing` find in it, and the repaired one under the same laws.

    python examples/property_test.py                 all laws, on 5 cases each
    python examples/property_test.py --examples 50   on more
    python examples/property_test.py --no-compile    without the two laws that compile

From top to bottom: the optimizer as one writes it down, a run that shows nothing, the laws, why each does not hold, the
repaired optimizer. In a test suite all of it is one line: `check(adam)`.
"""

import argparse
import sys

try:
    import hypothesis  # noqa: F401  # what funcopt.testing needs
    import torch

    import funcopt as fo
    from funcopt import tree
    from funcopt.numerics import abs_square, bias_correction, ema, increment, root
    from funcopt.testing import LAWS, LawViolation, check, minimise, violations
    from funcopt.testing.problems import quadratic
    from funcopt.transform import zero_count
except ModuleNotFoundError as missing:
    sys.stderr.write(f'property_test: {missing}; install what the example needs: pip install "funcopt[testing]"\n')
    sys.exit(2)


def naive_adam(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    """Adam as one writes it down, line by line from the paper."""

    def init(params):
        zeros = tree.map(torch.zeros_like, params)
        return {"count": torch.zeros(()), "mu": zeros, "nu": zeros}

    def update(grads, state, params=None, **extra):
        count = state["count"] + 1
        mu = tree.map(lambda mu, g: b1 * mu + (1 - b1) * g, state["mu"], grads)
        nu = tree.map(lambda nu, g: b2 * nu + (1 - b2) * g**2, state["nu"], grads)

        def direction(mu, nu):
            return -learning_rate * (mu / (1 - b1**count)) / ((nu / (1 - b2**count)).sqrt() + eps)

        return tree.map(direction, mu, nu), {"count": count, "mu": mu, "nu": nu}

    return fo.GradientTransformation(init, update, "elementwise")


WHY = {
    "surroundings": "1 - b1**count has the dtype of the count, and torch.zeros(()) has whatever the default is",
    "structure_is_kept": "a bfloat16 leaf of shape () times a float32 scalar is float32: torch promotes among scalars",
    "nothing_is_shared": "mu and nu begin as one tensor: what writes into one in place changes the other",
    "absent_gradient": "tree.map turns the moments of a leaf without a gradient into None, and they are lost",
    "zero_gradients": "ε = 1e-8 is zero in float16, so that 0 / (0 + ε) is NaN; bfloat16 scalars are promoted first",
    "complex_phase": "g**2 of a complex number is no size: it is |g|² that must be averaged",
    "half_precision": "moments in bfloat16 stop moving: 0.999 ν + 0.001 g² is rounded back to ν",
    "tensors_mean_numbers": "b1**count is taken in float32 with a number for b1, and in float64 with a tensor",
    "vmap_over_models": "torch.zeros(()) comes from no leaf: vmap cannot give each model a counter of its own",
    "vmap_over_hyperparameters": "the same float32 power: each rate trains on other numbers than alone",
    "derivatives_finite_at_zero": "√ν has an infinite derivative at 0, and 0 · ∞ is NaN",
    "adapter": "states are written in place there: what is written into nu is then in mu, which is the same tensor",
    "compiled": "the compiler notes that mu is nu, and compiles again once they differ",
}
"""For every law that the naive Adam breaks, the reason."""


def repaired_adam(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    """The same formula, with what funcopt has for each of the reasons."""

    def init(params):
        mu, nu = tree.zeros_like(params), tree.full_like(params, 0.0, real=True)
        return {"count": zero_count(params), "mu": mu, "nu": nu}

    def update(grads, state, params=None, **extra):
        count = increment(state["count"])
        c1, c2 = bias_correction(b1, count), bias_correction(b2, count)

        def rule(g, mu, nu):
            mu, nu = ema(mu, g, b1), ema(nu, abs_square(g), b2)
            return -learning_rate * (mu / c1) / (root(nu / c2) + eps), mu, nu

        updates, mu, nu = tree.map_rule(rule, grads, state["mu"], state["nu"])
        return updates, {"count": count, "mu": mu, "nu": nu}

    return fo.GradientTransformation(init, update, "elementwise")


def train(make) -> None:
    """A run on a quadratic: it says whether an optimizer goes down, and nothing else."""
    losses = minimise(quadratic((1.0, 4.0)), make(), steps=200).losses
    print(f"{make.__name__}: the loss falls from {losses[0]:.3g} to {losses[-1]:.1g} in 200 steps.")


def explain(violation: LawViolation) -> None:
    print(f"\n{violation.law}: {violation.statement}")
    print(f"  found: {violation.problem.splitlines()[0]}")
    print(f"  why:   {WHY.get(violation.law, 'not known to this example')}.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="property_test.py", description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=5, help="cases that each law is tried on (%(default)s)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without the laws that compile")
    args = parser.parse_args(argv)
    if args.examples < 1:
        parser.error(f"argument --examples: must be at least 1, got {args.examples}")

    laws = [law for law in LAWS if args.compile or not law.name.startswith("compiled")]
    train(naive_adam)
    found = list(violations(naive_adam, laws, max_examples=args.examples))
    print(f"{naive_adam.__name__} breaks {len(found)} of {len(laws)} laws.")
    for violation in found:
        explain(violation)

    shown = next(violation for violation in found if violation.law == "absent_gradient")
    print(f"\nA violation in full, with the smallest case that shows it:\n\n{shown}\n")

    train(repaired_adam)
    check(repaired_adam, laws, max_examples=args.examples)
    print(f"{repaired_adam.__name__} obeys all of them that apply to it.")


if __name__ == "__main__":
    main()
