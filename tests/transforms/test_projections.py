"""Projections: optax's numbers, nearest points, derivatives, special points; and params that are kept in a set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

import funcopt as fo
from funcopt import tree
from tests.trees import all_finite, assert_close, assert_identical, draw, finite_difference, stack, weighted_sum

NORMAL = draw(50)
SMALL_NORMAL = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.5], dtype=torch.float64)


class Set(NamedTuple):
    """A set of vectors of five numbers, and the projection on its like for any tree."""

    project: Callable[[Any, Any, Any], Any]  # of library, tree and scale
    point: Callable[[Tensor, Tensor], Tensor]  # any point of the set for scale 2, made from any vector and 0 < s < 1
    distance: Callable[[Tensor], Tensor]  # 0 for points of the set for scale 2


def normal_like(library: Any, x: Any) -> Any:
    """What serves as the vector `a`, in the arrays of the library of `x`."""
    if isinstance(x, Tensor) and x.shape == SMALL_NORMAL.shape:
        return SMALL_NORMAL
    return NORMAL if library is fo else to_jax(NORMAL)


def namespace(library: Any) -> Any:
    return library if library is fo else optax.projections


def solved(point: Tensor, product: Tensor | float) -> Tensor:
    """`point` with its first number such that the product with SMALL_NORMAL is `product`."""
    rest = (point[1:] * SMALL_NORMAL[1:]).sum()
    return torch.cat([((product - rest) / SMALL_NORMAL[0]).reshape(1), point[1:]])


def softmax(z: Tensor) -> Tensor:
    return 2.0 * torch.softmax(3 * z, 0)


def on_sphere(z: Tensor) -> Tensor:
    return 2.0 * (z + 1e-3) / (z + 1e-3).norm()


def outside(x: Tensor, lower: float, upper: float) -> Tensor:
    return (lower - x).clamp(min=0).max() + (x - upper).clamp(min=0).max()


def product_with_normal(x: Tensor) -> Tensor:
    return (x * SMALL_NORMAL).sum()


def sign(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0)


INF = float("inf")
SETS = {
    "non_negative": Set(
        lambda lib, x, scale: namespace(lib).projection_non_negative(x),
        lambda z, s: z.abs(),
        lambda x: outside(x, 0, INF),
    ),
    "box": Set(
        lambda lib, x, scale: (
            fo.projection_box(x, -0.5, scale)
            if lib is fo
            else jax.tree.map(lambda leaf: optax.projections.projection_box(leaf, -0.5, scale), x)
        ),
        lambda z, s: -0.5 + 2.5 * torch.sigmoid(z),
        lambda x: outside(x, -0.5, 2.0),
    ),
    "hypercube": Set(
        lambda lib, x, scale: (
            fo.projection_hypercube(x, scale)
            if lib is fo
            else jax.tree.map(lambda leaf: optax.projections.projection_hypercube(leaf, scale), x)
        ),
        lambda z, s: 2.0 * torch.sigmoid(z),
        lambda x: outside(x, 0.0, 2.0),
    ),
    "linf_ball": Set(
        lambda lib, x, scale: (
            fo.projection_linf_ball(x, scale)
            if lib is fo
            else jax.tree.map(lambda leaf: optax.projections.projection_linf_ball(leaf, scale), x)
        ),
        lambda z, s: 2.0 * torch.tanh(z),
        lambda x: outside(x, -2.0, 2.0),
    ),
    "simplex": Set(
        lambda lib, x, scale: namespace(lib).projection_simplex(x, scale),
        lambda z, s: softmax(z),
        lambda x: outside(x, 0.0, INF) + (x.sum() - 2.0).abs(),
    ),
    "l1_sphere": Set(
        lambda lib, x, scale: namespace(lib).projection_l1_sphere(x, scale),
        lambda z, s: sign(z) * softmax(z.roll(1)),
        lambda x: (x.abs().sum() - 2.0).abs(),
    ),
    "l1_ball": Set(
        lambda lib, x, scale: namespace(lib).projection_l1_ball(x, scale),
        lambda z, s: s * sign(z) * softmax(z.roll(1)),
        lambda x: (x.abs().sum() - 2.0).clamp(min=0),
    ),
    "l2_sphere": Set(
        lambda lib, x, scale: namespace(lib).projection_l2_sphere(x, scale),
        lambda z, s: on_sphere(z),
        lambda x: (x.norm() - 2.0).abs(),
    ),
    "l2_ball": Set(
        lambda lib, x, scale: namespace(lib).projection_l2_ball(x, scale),
        lambda z, s: s * on_sphere(z),
        lambda x: (x.norm() - 2.0).clamp(min=0),
    ),
    "vector": Set(
        lambda lib, x, scale: namespace(lib).projection_vector(x, normal_like(lib, x)),
        lambda z, s: z[0] * SMALL_NORMAL,
        lambda x: (x - product_with_normal(x) / SMALL_NORMAL.square().sum() * SMALL_NORMAL).abs().max(),
    ),
    "hyperplane": Set(
        lambda lib, x, scale: namespace(lib).projection_hyperplane(x, normal_like(lib, x), scale),
        lambda z, s: solved(z, 2.0),
        lambda x: (product_with_normal(x) - 2.0).abs(),
    ),
    "halfspace": Set(
        lambda lib, x, scale: namespace(lib).projection_halfspace(x, normal_like(lib, x), scale),
        lambda z, s: solved(z, 2.0 - 3 * z[0].abs()),
        lambda x: (product_with_normal(x) - 2.0).clamp(min=0),
    ),
}
ALL = pytest.mark.parametrize("name", SETS)
WITH_SCALE = pytest.mark.parametrize("name", [name for name in SETS if name not in ("non_negative", "vector")])
NUMBERS = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=5, max_size=5)


def to_jax(values: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf.numpy()), values, is_leaf=lambda x: isinstance(x, Tensor))


def vector(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@ALL
@pytest.mark.parametrize("scale", [0.3, 50.0])
def test_optax_gives_the_same(name, scale):
    project = SETS[name].project
    for seed in range(3):
        x = draw(seed)
        with jax.enable_x64(True):
            expected = jax.tree.map(np.array, project(optax, to_jax(x), scale))
        expected = tree.map(lambda leaf, theirs: torch.from_numpy(theirs), x, expected)
        assert_close(project(fo, x, scale), expected, rtol=1e-12, atol=1e-14)


@ALL
@settings(deadline=None, max_examples=60, derandomize=True)
@given(numbers=NUMBERS, other=NUMBERS, share=st.floats(0, 1))
def test_no_point_of_the_set_is_nearer(name, numbers, other, share):
    project, point, distance = SETS[name]
    x, nearest = vector(numbers), project(fo, vector(numbers), 2.0)
    feasible = point(vector(other), share)
    assert distance(feasible) < 1e-12, "the test's own point is not in the set"
    assert distance(nearest) < 1e-12
    assert (x - nearest).norm() <= (x - feasible).norm() + 1e-9
    assert_close(project(fo, nearest, 2.0), nearest, rtol=0, atol=1e-12)


@ALL
def test_derivatives(name):
    project, direction = SETS[name].project, draw(7)

    def fn(distance):
        x = tree.map(lambda leaf, step: leaf + distance * step, draw(8), direction)
        return weighted_sum(project(fo, x, 2.0))

    at = torch.zeros((), dtype=torch.float64)
    expected, forward = finite_difference(fn, at), jvp(fn, (at,), (torch.ones_like(at),))[1]
    assert abs(grad(fn)(at) - expected) < 1e-7 * (1 + abs(expected))
    assert abs(grad(fn)(at) - forward) < 1e-10 * (1 + abs(expected))


@WITH_SCALE
def test_derivatives_in_the_scale(name):
    def fn(scale):
        return weighted_sum(SETS[name].project(fo, draw(8), scale))

    at = torch.tensor(1.5, dtype=torch.float64)
    assert abs(grad(fn)(at) - finite_difference(fn, at)) < 1e-7 * (1 + abs(grad(fn)(at)))


@ALL
def test_derivatives_at_zero_are_finite(name):
    zeros = tree.map(torch.zeros_like, draw(1))
    for scale in (0.0, 2.0):
        assert all_finite(SETS[name].project(fo, zeros, scale))
        assert all_finite(grad(lambda x, scale=scale: weighted_sum(SETS[name].project(fo, x, scale)))(zeros))


def test_the_derivative_of_the_simplex_takes_the_mean_over_the_support_away():
    x, direction = vector([0.5, 1.0, -2.0]), vector([3.0, 1.0, 7.0])
    assert jvp(fo.projection_simplex, (x,), (direction,))[1].tolist() == [1.0, -1.0, 0.0]


@ALL
def test_over_a_batch(name):
    project, batch = SETS[name].project, [draw(seed) for seed in range(3)]
    assert_close(
        vmap(lambda x: project(fo, x, 2.0))(stack(batch)), stack([project(fo, x, 2.0) for x in batch]), rtol=1e-12
    )


@WITH_SCALE
def test_over_scales(name):
    x = draw(1)

    def fn(scale):
        return SETS[name].project(fo, x, scale)

    scales = vector([0.3, 2.0, 50.0])
    assert_close(vmap(fn)(scales), stack([fn(scale.item()) for scale in scales]), rtol=1e-12, atol=1e-14)


def test_compiled_in_one_graph():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")

    def all_of_them(x, scale):
        return {name: each.project(fo, x, scale) for name, each in SETS.items()}

    compiled = fo.compile(all_of_them, backend=counter)
    for seed, scale in enumerate(vector([0.5, 2.0])):
        x = draw(seed, shapes=(5,))
        assert_close(compiled(x, scale), all_of_them(x, scale), rtol=1e-12, atol=1e-14)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_and_arguments_are_kept(name, dtype):
    x = draw(1, dtype)
    before = tree.clone(x)
    result = SETS[name].project(fo, x, 2.0)
    assert [leaf.dtype for leaf in tree.leaves(result)] == [dtype] * len(tree.leaves(x))
    exact = SETS[name].project(fo, tree.cast(x, torch.float64), 2.0)
    assert_close(result, exact, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    for leaf in tree.leaves(result):
        leaf.fill_(77)
    assert_identical(x, before)


@ALL
def test_absent_leaves_take_no_part(name):
    project, x = SETS[name].project, draw(1)
    full = tree.map(lambda leaf: leaf.clone(), x)
    full["b"] = [torch.zeros(0, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)]
    absent, masked = {**x, "b": [None, None]}, {**x, "b": [tree.MaskedNode(), tree.MaskedNode()]}
    if name in ("vector", "hyperplane", "halfspace"):
        without = {**NORMAL, "b": [torch.zeros(0, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)]}
        masked_normal = {**NORMAL, "b": masked["b"]}
        expected = projections_along(name, full, without)
        result, of_masked = projections_along(name, absent, NORMAL), projections_along(name, masked, masked_normal)
    else:
        expected, result, of_masked = (project(fo, each, 2.0) for each in (full, absent, masked))
    assert result["b"] == [None, None]
    assert of_masked["b"] == [tree.MaskedNode(), tree.MaskedNode()]
    for key in ("a", "c"):
        assert_close(result[key], expected[key], rtol=1e-14)
        assert_close(of_masked[key], expected[key], rtol=1e-14)


def projections_along(name: str, x: Any, normal: Any) -> Any:
    if name == "vector":
        return fo.projection_vector(x, normal)
    return getattr(fo, f"projection_{name}")(x, normal, 2.0)


@ALL
def test_empty_trees(name):
    if name in ("vector", "hyperplane", "halfspace"):
        assert projections_along(name, {}, {}) == {}
        assert projections_along(name, {"a": None}, {"a": None}) == {"a": None}
    else:
        assert SETS[name].project(fo, {}, 2.0) == {}
        assert SETS[name].project(fo, {"a": None}, 2.0) == {"a": None}


FIVE = vector([0.0] * 5)
SPECIAL = {
    "0 on the l2 sphere": (lambda: fo.projection_l2_sphere(vector([0.0] * 4), 2.0), [1.0] * 4),
    "0 on the l1 sphere": (lambda: fo.projection_l1_sphere(vector([0.0] * 4), 2.0), [0.5] * 4),
    "a zero on the l1 sphere": (lambda: fo.projection_l1_sphere(vector([0.0, -0.2]), 1.0), [0.4, -0.6]),
    "on the multiples of 0": (lambda: fo.projection_vector(vector([1.0, 2.0]), vector([0.0, 0.0])), [0.0, 0.0]),
    "a hyperplane without a normal": (
        lambda: fo.projection_hyperplane(vector([1.0, 2.0]), vector([0.0, 0.0]), 1.0),
        [1.0, 2.0],
    ),
    "a halfspace without a normal": (
        lambda: fo.projection_halfspace(vector([1.0, 2.0]), vector([0.0, 0.0]), -1.0),
        [1.0, 2.0],
    ),
    "a ball of radius 0": (lambda: fo.projection_l2_ball(vector([3.0, 4.0]), 0.0), [0.0, 0.0]),
    "an l1 ball of radius 0": (lambda: fo.projection_l1_ball(vector([3.0, 4.0]), 0.0), [0.0, 0.0]),
    "one number on the simplex": (lambda: fo.projection_simplex(vector([-7.0]), 3.0), [3.0]),
    "equal numbers on the simplex": (lambda: fo.projection_simplex(vector([5.0, 5.0, -9.0]), 1.0), [0.5, 0.5, 0.0]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_points(name):
    make, expected = SPECIAL[name]
    assert make().tolist() == pytest.approx(expected, abs=1e-15)


OPTAX_AT_SPECIAL_POINTS = {
    "0 on the l2 sphere": (lambda lib: lib.projection_l2_sphere(np.zeros(4), 2.0), [float("nan")] * 4),
    "a zero on the l1 sphere": (lambda lib: lib.projection_l1_sphere(np.array([0.0, -0.2]), 1.0), [0.0, -0.6]),
    "on the multiples of 0": (lambda lib: lib.projection_vector(np.ones(2), np.zeros(2)), [float("nan")] * 2),
    "a hyperplane without a normal": (
        lambda lib: lib.projection_hyperplane(np.ones(2), np.zeros(2), 1.0),
        [float("nan")] * 2,
    ),
}


@pytest.mark.parametrize("name", OPTAX_AT_SPECIAL_POINTS)
def test_optax_at_special_points(name):
    make, theirs = OPTAX_AT_SPECIAL_POINTS[name]
    with jax.enable_x64(True):
        assert np.array(make(optax.projections)).tolist() == pytest.approx(theirs, nan_ok=True)


@pytest.mark.parametrize("name", ["l1_sphere", "l1_ball", "l2_sphere", "l2_ball"])
def test_complex_numbers_keep_their_direction(name):
    x = draw(1, torch.complex128)
    sizes = tree.map(torch.abs, x)
    result = SETS[name].project(fo, x, 2.0)
    assert_close(tree.map(torch.abs, result), SETS[name].project(fo, sizes, 2.0), rtol=1e-13, atol=1e-15)
    assert all(bool(((x * r.conj()).imag.abs() < 1e-14).all()) for x, r in zip(tree.leaves(x), tree.leaves(result)))


NEEDS_ORDER = {
    "non_negative": lambda x: fo.projection_non_negative(x),
    "box": lambda x: fo.projection_box(x, 0.0, 1.0),
    "hypercube": lambda x: fo.projection_hypercube(x),
    "linf_ball": lambda x: fo.projection_linf_ball(x),
    "simplex": lambda x: fo.projection_simplex(x),
    "vector": lambda x: fo.projection_vector(x, x),
    "hyperplane": lambda x: fo.projection_hyperplane(x, x, 1.0),
    "halfspace": lambda x: fo.projection_halfspace(x, x, 1.0),
}


@pytest.mark.parametrize("name", NEEDS_ORDER)
def test_complex_numbers_are_refused_elsewhere(name):
    with pytest.raises(TypeError, match=f"projection_{name}: complex leaves have no order"):
        NEEDS_ORDER[name]({"w": torch.ones(2, dtype=torch.complex64)})


@WITH_SCALE
def test_nan_is_not_taken_for_a_point(name):
    x = vector([1.0, float("nan"), 0.0, 0.0, 0.0])
    assert SETS[name].project(fo, x, 2.0)[1].isnan()


BAD = {
    "a negative radius": (
        lambda: fo.projection_l2_ball(FIVE, -1.0),
        ValueError,
        r"l2_ball: scale must lie in \[0, inf",
    ),
    "a simplex of NaN": (lambda: fo.projection_simplex(FIVE, float("nan")), ValueError, "simplex: scale must lie in"),
    "a radius in words": (lambda: fo.projection_l1_ball(FIVE, "2"), TypeError, "l1_ball: scale must be a number"),
    "crossed bounds": (lambda: fo.projection_box(FIVE, 1.0, 0.0), ValueError, "lower must not be above upper"),
    "bounds of another tree": (lambda: fo.projection_box({"a": FIVE}, {"b": 0.0}, 1.0), ValueError, "'b' is missing"),
    "normals of another tree": (lambda: fo.projection_vector({"a": FIVE}, {"b": FIVE}), ValueError, "'a' is missing"),
    "no projection": (lambda: fo.keep_params_in(2.0), TypeError, "keep_params_in: projection must be a function"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        make()


def test_bounds_of_a_box_by_prefix():
    x = {"a": [vector([-3.0, 3.0]), vector([-3.0, 3.0])], "b": vector([-3.0, 3.0]), "c": None}
    lower = {"a": -1.0, "b": None, "c": 0.0}
    upper = {"a": [0.5, vector([-2.0, 2.0])], "b": torch.tensor(1.0), "c": None}
    result = fo.projection_box(x, {**lower, "a": [-1.0, -9.0]}, upper)
    assert [leaf.tolist() for leaf in tree.leaves(result)] == [[-1.0, 0.5], [-3.0, 2.0], [-3.0, 1.0]]
    assert result["c"] is None
    assert fo.projection_box(x, lower, 9.0)["a"][1].tolist() == [-1.0, 3.0]


@ALL
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_params_are_kept_in_the_set(name, dtype, tolerance):
    project, _, distance = SETS[name]
    if name in ("vector", "hyperplane", "halfspace"):
        normal = SMALL_NORMAL.to(dtype)
        link = fo.keep_params_in(lambda params: projections_along(name, params, normal))
    else:
        link = fo.keep_params_in(lambda params: project(fo, params, 2.0))
    optimizer = fo.chain(fo.adam(0.5), link)
    params = torch.tensor([3.0, -1.0, 0.0, 2.0, 0.5], dtype=dtype)
    state = optimizer.init(params)
    for step in range(20):
        updates, state = optimizer.update(draw(step, dtype, (5,)), state, params)
        params = fo.apply_updates(params, updates)
        assert updates.dtype == dtype
        assert distance(params.to(torch.float64)) < tolerance


def test_projected_gradient_descent_finds_the_nearest_point():
    """Least squares over the simplex: the projection itself."""
    target = draw(3)
    optimizer = fo.chain(fo.sgd(0.3), fo.keep_params_in(fo.projection_simplex))
    params = draw(4)
    state = optimizer.init(params)
    for _ in range(200):
        grads = tree.map(torch.sub, params, target)
        updates, state = optimizer.update(grads, state, params)
        params = fo.apply_updates(params, updates)
    assert_close(params, fo.projection_simplex(target), rtol=0, atol=1e-12)


def test_a_leaf_without_a_gradient_stays_out_of_the_projection():
    link = fo.keep_params_in(lambda params: fo.projection_l2_ball(params, 1.0))
    params = {"still": torch.tensor([9.0]), "moved": torch.tensor([0.0])}
    updates, _ = link.update({"still": None, "moved": torch.tensor([4.0])}, link.init(params), params)
    assert updates["still"] is None
    assert updates["moved"].item() == 1.0


def test_a_step_smaller_than_the_spacing_of_bfloat16_is_kept():
    """The parameters may be added to in a higher precision; `p + g` in bfloat16 would be p."""
    link = fo.keep_params_in(fo.projection_non_negative)
    params, step = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1e-3, dtype=torch.bfloat16)
    updates, _ = link.update(step, link.init(params), params)
    assert_close(updates, step, rtol=1e-2)


def test_params_are_needed():
    link = fo.keep_params_in(fo.projection_simplex)
    with pytest.raises(ValueError, match="keep_params_in: update needs the parameters"):
        link.update(FIVE, link.init(FIVE))
