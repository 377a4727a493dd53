"""Optimisation problems with known answers: where the minimum lies, and how fast a method gets there."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import random, tree
from funcopt.checks import check_integer, check_within
from funcopt.transform import GradientTransformation, Params, State, apply_updates


@dataclass(frozen=True, eq=False)
class Problem:
    """A loss, where to start, and what is known about its minimum.

    Attributes:
        name: what it is called.
        loss: `loss(params, batch=None)`: the loss on a batch, or the one to be minimised where there is no batch.
        params: the initial parameters, in float64.
        minimiser: where `loss(params)` is least.
        minimum: `loss(minimiser)`.
        facts: numbers that are known about it; each factory says which.
        batch: `batch(step)`, what the loss of a step depends on; None where each step has the same loss.
        project: the map of parameters onto those that are allowed, applied after each step; None where all are.
    """

    name: str
    loss: Callable[..., Tensor]
    params: Params
    minimiser: Params
    minimum: float
    facts: Mapping[str, float] = field(default_factory=dict)
    batch: Callable[[int], Any] | None = None
    project: Callable[[Params], Params] | None = None

    def distance(self, params: Params) -> Tensor:
        """The 2-norm of `params - minimiser`."""
        return tree.global_norm(tree.map(torch.sub, params, self.minimiser))

    def __repr__(self) -> str:
        return f"<problem {self.name}>"


class Run(NamedTuple):
    params: Params  # after the last step
    state: State
    losses: Tensor  # before each step, and after the last: without noise, shape (steps + 1,)
    distances: Tensor  # from the minimiser, likewise


def minimise(problem: Problem, tx: GradientTransformation, steps: int) -> Run:
    """Run `tx` on a problem from its initial parameters.

    Each update is also given `value`, `grad` and `value_fn`, for the transformations that need them.

    >>> run = minimise(quadratic((1.0, 4.0)), sgd(0.4), steps=20)
    >>> bool(run.distances[-1] < 1e-4)
    True
    """
    params, state = problem.params, tx.init(problem.params)
    losses, distances = [problem.loss(params)], [problem.distance(params)]
    for step in range(steps):
        batch = None if problem.batch is None else problem.batch(step)
        loss = functools.partial(problem.loss, batch=batch)
        gradient, value = torch.func.grad_and_value(loss)(params)
        updates, state = tx.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        params = apply_updates(params, updates)
        params = params if problem.project is None else problem.project(params)
        losses.append(problem.loss(params))
        distances.append(problem.distance(params))
    return Run(params, state, torch.stack(losses), torch.stack(distances))


def quadratic(eigenvalues: Sequence[float] = (1.0, 4.0), *, rotated: int | None = None) -> Problem:
    """A strongly convex quadratic, `½ (x - c)ᵀ A (x - c)` with `A` of these eigenvalues, c = (1, 2, ...), from x = 0.

    A is diagonal, or in a random basis drawn from the seed `rotated`. Facts, with μ and L the extreme eigenvalues:

        condition κ = L / μ
        gradient descent:  gd_rate 2 / (L + μ), which contracts the error by gd_contraction (κ - 1) / (κ + 1) a step
        heavy ball (Polyak 1964):  hb_rate 4 / (√L + √μ)², hb_momentum q², and in the long run a factor of
            hb_contraction q = (√κ - 1) / (√κ + 1) a step; for the extreme eigenvalues, (c₀ + c₁ t) (±q)ᵗ

    Raises:
        ValueError: there is no eigenvalue, or one is not positive.
    """
    if not eigenvalues:
        raise ValueError("quadratic: eigenvalues must hold at least one number, got eigenvalues=().")
    check_within("quadratic", "(0, inf)", **{f"eigenvalues[{i}]": value for i, value in enumerate(eigenvalues)})
    basis = _basis(len(eigenvalues), rotated)
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.mT
    centre = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64)

    def loss(params: Tensor, batch: None = None) -> Tensor:
        error = params - centre.to(params.dtype)
        return 0.5 * torch.dot(error, matrix.to(params.dtype) @ error)

    name = f"quadratic with condition {max(eigenvalues) / min(eigenvalues):g}"
    return Problem(name, loss, torch.zeros_like(centre), centre, 0.0, _quadratic_facts(eigenvalues))


def _basis(dimension: int, seed: int | None) -> Tensor:
    if seed is None:
        return torch.eye(dimension, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(random.normal(random.key(seed), (dimension, dimension), torch.float64))[0]
    return basis


def _quadratic_facts(eigenvalues: Sequence[float]) -> dict[str, float]:
    mu, smoothness = min(eigenvalues), max(eigenvalues)
    condition = smoothness / mu
    root = math.sqrt(condition)
    return {
        "mu": mu,
        "L": smoothness,
        "condition": condition,
        "gd_rate": 2 / (smoothness + mu),
        "gd_contraction": (condition - 1) / (condition + 1),
        "hb_rate": 4 / (math.sqrt(smoothness) + math.sqrt(mu)) ** 2,
        "hb_momentum": ((root - 1) / (root + 1)) ** 2,
        "hb_contraction": (root - 1) / (root + 1),
    }


def ill_conditioned(condition: float = 1e4, dimension: int = 10) -> Problem:
    """`quadratic` with eigenvalues from 1 to `condition`, evenly spaced on a logarithmic scale, in a random basis.

    Raises:
        ValueError: `condition` is less than 1, or `dimension` less than 2.
    """
    check_within("ill_conditioned", "[1, inf)", condition=condition)
    check_integer("ill_conditioned", 2, dimension=dimension)
    return quadratic([condition ** (i / (dimension - 1)) for i in range(dimension)], rotated=0)


def noisy_quadratic(eigenvalues: Sequence[float] = (1.0, 4.0), noise: float = 0.1, seed: int = 0) -> Problem:
    """`quadratic` whose gradients have noise of standard deviation `noise` in every number, a new one at each step.

    The loss of a step adds `noise * zᵀ (x - c)`, with z drawn from the batch, a key of `funcopt.random`.
    `stationary_variance` tells what SGD ends with. Facts: those of `quadratic`, and `noise`.

    Raises:
        ValueError: `noise` is negative, or as `quadratic`.
    """
    check_within("noisy_quadratic", "[0, inf)", noise=noise)
    exact, key = quadratic(eigenvalues), random.key(seed)

    def loss(params: Tensor, batch: Tensor | None = None) -> Tensor:
        value = exact.loss(params)
        if batch is not None:
            z = random.normal(batch, tuple(params.shape), torch.float64).to(params.dtype)
            value = value + noise * z @ (params - exact.minimiser.to(params.dtype))
        return value

    facts = {**exact.facts, "noise": noise}
    return Problem(
        f"noisy {exact.name}",
        loss,
        exact.params,
        exact.minimiser,
        exact.minimum,
        facts,
        lambda step: random.fold_in(key, step),
    )


def stationary_variance(eigenvalue: float, learning_rate: float, noise: float) -> float:
    """The variance that SGD with a constant rate keeps along an eigenvector of a `noisy_quadratic`, for `α λ < 2`.

    x ← (1 - α λ) x - α σ z        hence  var x = α σ² / (λ (2 - α λ))
    """
    return learning_rate * noise**2 / (eigenvalue * (2 - learning_rate * eigenvalue))


def rosenbrock(dimension: int = 2) -> Problem:
    """Rosenbrock's valley (1960, https://doi.org/10.1093/comjnl/3.3.175), from (-1.2, 1, -1.2, 1, ...).

        Σ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)²        least, 0, at (1, ..., 1)

    From 4 to 7 dimensions there is also a local minimum, near (-1, 1, ..., 1) (Shang & Qiu 2006,
    https://doi.org/10.1162/evco.2006.14.1.119).

    Raises:
        ValueError: `dimension` is less than 2.
    """
    check_integer("rosenbrock", 2, dimension=dimension)

    def loss(params: Tensor, batch: None = None) -> Tensor:
        x, following = params[:-1], params[1:]
        return (100 * (following - x.square()).square() + (1 - x).square()).sum()

    start = torch.tensor([-1.2, 1.0] * dimension, dtype=torch.float64)[:dimension]
    return Problem(f"Rosenbrock in {dimension} dimensions", loss, start, torch.ones_like(start), 0.0)


def beale() -> Problem:
    """Beale's function (1958), flat around a narrow valley, from (1, 1).

    (1.5 - x + x y)² + (2.25 - x + x y²)² + (2.625 - x + x y³)²        least, 0, at (3, ½)
    """

    def loss(params: Tensor, batch: None = None) -> Tensor:
        x, y = params[0], params[1]
        terms = (constant - x + x * y**power for power, constant in enumerate((1.5, 2.25, 2.625), 1))
        return sum((term.square() for term in terms), torch.zeros_like(x))

    start = torch.ones(2, dtype=torch.float64)
    return Problem("Beale", loss, start, torch.tensor([3.0, 0.5], dtype=torch.float64), 0.0)


def reddi(constant: float = 3.0) -> Problem:
    """The problem on which Adam goes to the worst point (Reddi et al. 2018, https://openreview.net/forum?id=ryQu7f-RZ).

        f(x) = C x  in steps 0, 3, 6, ...,  else -x        x in [-1, 1], from 0

    It is Theorem 1 of the paper, without chance. The mean loss `(C - 2) x / 3` is least at x = -1. Adam with the b1
    and b2 among the facts and a rate that decays as 1/√t goes to `adam_limit`, 1: the large gradient is divided by its
    own size, and the two small ones, by then, are not. AMSGrad goes to -1.

    Raises:
        ValueError: `constant` is not greater than 2.
    """
    check_within("reddi", "(2, inf)", constant=constant)

    def loss(params: Tensor, batch: float | None = None) -> Tensor:
        slope = (constant - 2) / 3 if batch is None else batch
        return slope * params

    return Problem(
        "Reddi",
        loss,
        torch.zeros((), dtype=torch.float64),
        -torch.ones((), dtype=torch.float64),
        -(constant - 2) / 3,
        {"b1": 0.0, "b2": 1 / (1 + constant**2), "adam_limit": 1.0},
        lambda step: constant if step % 3 == 0 else -1.0,
        lambda params: params.clamp(-1, 1),
    )


def logistic_regression(l2: float = 1e-2) -> Problem:
    """Logistic regression on the breast cancer data of scikit-learn: 569 examples of 30 features, which it bundles.

        mean log(1 + exp(-yᵢ (w xᵢ + b))) + ½ l2 (‖w‖² + b²)        features standardised, y = ±1, from zeros

    Parameters are `{"weight": (30,), "bias": ()}`. The minimiser is found by Newton's method in float64, to a gradient
    below 1e-14. Facts: `mu` (l2) and `L` (λ_max(XᵀX) / 4n + l2), bounds on the curvature; `accuracy` at the minimum.

    Raises:
        ImportError: there is no scikit-learn.
        ValueError: `l2` is not positive.
    """
    check_within("logistic_regression", "(0, inf)", l2=l2)
    return _logistic_regression(l2)


@functools.cache
def _logistic_regression(l2: float) -> Problem:
    features, labels = _breast_cancer()

    def loss(params: Params, batch: None = None) -> Tensor:
        weight, bias = params["weight"], params["bias"]
        margins = labels.to(weight.dtype) * (features.to(weight.dtype) @ weight + bias)
        penalty: Tensor = weight.square().sum() + bias.square()
        return torch.nn.functional.softplus(-margins).mean() + 0.5 * l2 * penalty

    extended = torch.cat((features, torch.ones(len(features), 1, dtype=torch.float64)), 1)
    solution = _newton(lambda x: loss({"weight": x[:-1], "bias": x[-1]}), extended.new_zeros(extended.shape[1]))
    minimiser = {"weight": solution[:-1].clone(), "bias": solution[-1].clone()}
    curvature = torch.linalg.eigvalsh(extended.mT @ extended)[-1] / (4 * len(features))
    correct = (labels * (extended @ solution) > 0).to(torch.float64).mean()
    facts = {"mu": l2, "L": curvature.item() + l2, "accuracy": correct.item()}
    start = tree.map(torch.zeros_like, minimiser)
    return Problem("logistic regression on breast cancer", loss, start, minimiser, loss(minimiser).item(), facts)


def _breast_cancer() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped, import-not-found, unused-ignore]

    data = load_breast_cancer()
    features = torch.tensor(data.data, dtype=torch.float64)
    labels = 2.0 * torch.tensor(data.target, dtype=torch.float64) - 1
    return (features - features.mean(0)) / features.std(0), labels


def _newton(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The minimiser of a smooth and strongly convex function, from where Newton's method converges."""
    for _ in range(50):
        gradient = torch.func.grad(loss)(x)
        if gradient.norm() < 1e-14:
            break
        x = x - torch.linalg.solve(torch.func.hessian(loss)(x), gradient)
    return x


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "quadratic": quadratic,
    "ill_conditioned": ill_conditioned,
    "noisy_quadratic": noisy_quadratic,
    "rosenbrock": rosenbrock,
    "beale": beale,
    "reddi": reddi,
    "logistic_regression": logistic_regression,
}
"""Every problem by name, as a function that makes it."""
