"""Problems with known answers: the minimum is one, the stated rates are met, and methods part where they should."""

import math
from itertools import pairwise

import pytest
import torch

import funcopt as fo
from funcopt import random, tree
from funcopt.testing import problems as kit
from funcopt.testing.problems import PROBLEMS, minimise, quadratic, stationary_variance

SMOOTH = [name for name in PROBLEMS if name != "reddi"]  # whose minimum lies on the border


def gradient_norm(problem, params):
    return tree.global_norm(torch.func.grad(problem.loss)(params)).item()


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_at_the_minimiser_is_zero(name):
    problem = PROBLEMS[name]()
    assert gradient_norm(problem, problem.minimiser) < 1e-13
    assert gradient_norm(problem, problem.params) > 1e-2


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_minimum_is_the_loss_at_the_minimiser_and_least_around_it(name):
    problem = PROBLEMS[name]()
    assert problem.loss(problem.minimiser).item() == pytest.approx(problem.minimum, abs=1e-15)
    assert problem.distance(problem.minimiser) == 0 and problem.distance(problem.params) > 0
    for seed in range(20):
        keys = iter(random.split(random.key(seed), len(tree.leaves(problem.params))))
        step = tree.map(lambda leaf, keys=keys: 0.1 * random.normal(next(keys), leaf.shape, leaf.dtype), problem.params)
        near = fo.apply_updates(problem.minimiser, step)
        near = problem.project(near) if problem.project else near
        assert problem.loss(near) >= problem.minimum


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_leaf_is_float64_and_a_loss_takes_float32(name):
    problem = PROBLEMS[name]()
    assert {leaf.dtype for leaf in tree.leaves((problem.params, problem.minimiser))} == {torch.float64}
    single = tree.map(lambda leaf: leaf.float(), problem.params)
    assert problem.loss(single).dtype == torch.float32
    assert problem.loss(single).item() == pytest.approx(problem.loss(problem.params).item(), rel=1e-5)


@pytest.mark.parametrize("eigenvalues", [(1.0, 4.0), (0.3, 30.0), (2.0, 2.0)])
@pytest.mark.parametrize("rotated", [None, 5])
def test_gradient_descent_contracts_by_the_stated_factor_in_each_step(eigenvalues, rotated):
    """Of extreme eigenvalues alone: both parts of the error shrink alike, by (κ - 1) / (κ + 1)."""
    problem = quadratic(eigenvalues, rotated=rotated)
    condition = max(eigenvalues) / min(eigenvalues)
    assert problem.facts["gd_contraction"] == pytest.approx((condition - 1) / (condition + 1), abs=1e-15)
    distances = minimise(problem, fo.sgd(problem.facts["gd_rate"]), 8).distances
    for before, after in pairwise(distances):
        assert after.item() == pytest.approx(problem.facts["gd_contraction"] * before.item(), rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_no_other_constant_rate_contracts_faster(factor):
    problem = quadratic((1.0, 2.0, 9.0))
    other = minimise(problem, fo.sgd(factor * problem.facts["gd_rate"]), 60).distances
    best = minimise(problem, fo.sgd(problem.facts["gd_rate"]), 60).distances
    assert best[-1] / best[-2] < 0.999 * other[-1] / other[-2]
    assert (best[-1] / best[-2]).item() == pytest.approx(problem.facts["gd_contraction"], rel=1e-9)


@pytest.mark.parametrize("eigenvalues", [(1.0, 4.0), (0.5, 50.0)])
def test_heavy_ball_follows_its_closed_form(eigenvalues):
    """With the optimal rate and momentum, each extreme eigenvalue λ has the double root r = (1 + β - α λ) / 2 = ±q."""
    problem = quadratic(eigenvalues)
    alpha, beta, q = (problem.facts[name] for name in ("hb_rate", "hb_momentum", "hb_contraction"))
    steps = 25
    errors = minimise(problem, fo.sgd(alpha, momentum=beta), steps).params - problem.minimiser
    for eigenvalue, error, start in zip(eigenvalues, errors, -problem.minimiser):
        root = (1 + beta - alpha * eigenvalue) / 2
        assert abs(root) == pytest.approx(q, rel=1e-12)
        slope = start * (1 - alpha * eigenvalue) / root - start
        assert error.item() == pytest.approx(((start + slope * steps) * root**steps).item(), rel=1e-8, abs=1e-14)


def test_heavy_ball_beats_gradient_descent_where_the_condition_is_bad():
    problem = kit.ill_conditioned(1e3)
    facts = problem.facts
    plain = minimise(problem, fo.sgd(facts["gd_rate"]), 300).distances[-1]
    heavy = minimise(problem, fo.sgd(facts["hb_rate"], momentum=facts["hb_momentum"]), 300).distances[-1]
    assert heavy < 1e-3 * plain
    assert (heavy / problem.distance(problem.params)).item() ** (1 / 300) == pytest.approx(
        facts["hb_contraction"], rel=0.03
    )


@pytest.mark.parametrize("rotated", [None, 1])
def test_a_rotation_keeps_the_eigenvalues(rotated):
    problem = quadratic((0.5, 2.0, 7.0), rotated=rotated)
    hessian = torch.func.hessian(problem.loss)(problem.params)
    assert torch.linalg.eigvalsh(hessian).tolist() == pytest.approx([0.5, 2.0, 7.0], rel=1e-12)
    assert (rotated is None) == bool((hessian == hessian.diagonal().diag()).all())


def test_ill_conditioned_has_the_condition_it_says():
    eigenvalues = torch.linalg.eigvalsh(torch.func.hessian(kit.ill_conditioned(1e6).loss)(torch.zeros(10).double()))
    assert (eigenvalues[-1] / eigenvalues[0]).item() == pytest.approx(1e6, rel=1e-8)


def test_noise_depends_on_the_step_and_the_seed_alone():
    problem, tx = kit.noisy_quadratic(), fo.sgd(0.1)
    assert torch.equal(minimise(problem, tx, 10).params, minimise(problem, tx, 10).params)
    assert not torch.equal(minimise(problem, tx, 10).params, minimise(kit.noisy_quadratic(seed=1), tx, 10).params)


def test_sgd_on_the_noisy_quadratic_ends_with_the_stationary_variance():
    """Each number of the parameters is a run of its own, of the eigenvalue 2."""
    rate, noise = 0.3, 0.5
    problem = kit.noisy_quadratic([2.0] * 50, noise=noise)
    gradient = torch.func.grad(problem.loss)
    x = problem.minimiser.clone()
    collected = []
    for step in range(200):
        x = x - rate * gradient(x, problem.batch(step))
        collected.append(x - problem.minimiser)
    measured = torch.stack(collected[20:]).square().mean().item()
    expected = stationary_variance(2.0, rate, noise)
    assert expected == pytest.approx(rate * noise**2 / (2 * (2 - rate * 2)))
    assert measured == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "problem, tx, steps, distance",
    [
        (kit.rosenbrock(), fo.adam(0.1), 1200, 1e-2),
        (kit.rosenbrock(3), fo.adam(0.1), 1200, 0.2),
        (kit.beale(), fo.adam(0.05), 600, 1e-2),
        (kit.beale(), fo.sgd(0.01, momentum=0.9), 1000, 1e-2),
    ],
    ids=["Rosenbrock", "Rosenbrock 3", "Beale", "Beale with momentum"],
)
def test_the_classics_are_solved(problem, tx, steps, distance):
    run = minimise(problem, tx, steps)
    assert run.distances[-1] < distance and run.losses[-1] < 1e-2
    assert len(run.losses) == len(run.distances) == steps + 1


def test_rosenbrock_has_a_second_minimum_in_four_dimensions():
    loss = kit.rosenbrock(4).loss
    x = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    for _ in range(20):
        x = x - torch.linalg.solve(torch.func.hessian(loss)(x), torch.func.grad(loss)(x))
    assert x[0] < -0.7 and torch.func.grad(loss)(x).norm() < 1e-10
    assert torch.linalg.eigvalsh(torch.func.hessian(loss)(x))[0] > 0


def decaying(count):
    return 0.5 / torch.sqrt(count.double() + 1)


@pytest.mark.parametrize("constant", [3.0, 10.0])
def test_adam_goes_to_the_wrong_end_of_the_counter_example_and_amsgrad_does_not(constant):
    problem = kit.reddi(constant)
    betas = {"b1": problem.facts["b1"], "b2": problem.facts["b2"]}
    steps = 300
    adam = minimise(problem, fo.adam(decaying, **betas), steps)
    amsgrad = minimise(problem, fo.amsgrad(decaying, **betas), steps)
    assert adam.params.item() > 0.9 and adam.losses[-1] > -0.9 * problem.minimum
    assert amsgrad.params.item() < -0.9 and amsgrad.distances[-1] < 0.1
    assert minimise(problem, fo.sgd(decaying), steps).params.item() < -0.9


def test_logistic_regression_converges_at_the_rate_of_its_curvature():
    problem = kit.logistic_regression(l2=0.1)
    mu, smoothness = problem.facts["mu"], problem.facts["L"]
    hessian = torch.func.hessian(lambda x: problem.loss({"weight": x[:-1], "bias": x[-1]}))
    for at in (torch.zeros(31, dtype=torch.float64), torch.ones(31, dtype=torch.float64)):
        eigenvalues = torch.linalg.eigvalsh(hessian(at))
        assert mu * 0.999 <= eigenvalues[0] and eigenvalues[-1] <= smoothness * 1.001
    distances = minimise(problem, fo.sgd(2 / (smoothness + mu)), 100).distances
    contraction = (smoothness - mu) / (smoothness + mu)
    assert bool((distances[1:] <= distances[:-1] * contraction + 1e-14).all())
    assert distances[-1] < 1e-2 and 0.97 < problem.facts["accuracy"] < 1


def test_logistic_regression_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    l2 = 1e-2
    features, labels = kit._breast_cancer()
    extended = torch.cat((features, torch.ones(len(features), 1)), 1)
    model = LogisticRegression(C=1 / (l2 * len(features)), fit_intercept=False, tol=1e-10, max_iter=5000)
    found = torch.tensor(model.fit(extended.numpy(), labels.numpy()).coef_[0])
    minimiser = kit.logistic_regression(l2).minimiser
    assert torch.allclose(found, torch.cat((minimiser["weight"], minimiser["bias"][None])), atol=1e-4)


def test_updates_are_given_the_loss():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append((sorted(extra), extra["value"].item(), extra["value_fn"](params).item()))
        return tree.map(torch.zeros_like, updates), state

    minimise(quadratic(), fo.GradientTransformation(lambda params: (), update), 1)
    assert seen == [(["grad", "value", "value_fn"], 8.5, 8.5)]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: quadratic(()), "quadratic: eigenvalues must hold at least one"),
        (lambda: quadratic((1.0, 0.0)), r"quadratic: eigenvalues\[1\] must lie in \(0, inf\), got"),
        (lambda: kit.ill_conditioned(0.5), r"ill_conditioned: condition must lie in \[1, inf\), got condition=0.5"),
        (lambda: kit.ill_conditioned(dimension=1), "ill_conditioned: dimension must be at least 2"),
        (lambda: kit.noisy_quadratic(noise=-1.0), "noisy_quadratic: noise must lie in"),
        (lambda: kit.rosenbrock(1), "rosenbrock: dimension must be at least 2"),
        (lambda: kit.reddi(2.0), r"reddi: constant must lie in \(2, inf\), got constant=2.0"),
        (lambda: kit.logistic_regression(0.0), r"logistic_regression: l2 must lie in \(0, inf\)"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_problem_prints_as_its_name():
    assert repr(kit.beale()) == "<problem Beale>" and math.isclose(kit.beale().minimum, 0)
