"""Strategies for tensors and trees: what they draw, how it shrinks, and how it prints."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.vendor.pretty import pretty

from funcopt import tree
from funcopt.testing import trees as kit
from funcopt.testing.printing import source
from funcopt.testing.strategies import params
from funcopt.testing.trees import Empty, Layer, Single, Triple, pytrees, tensors
from tests.testing.search import PROFILE, examples, simplest

NAMES = {"torch": torch, "Empty": Empty, "Single": Single, "Layer": Layer, "Triple": Triple}


def seen(strategy, what, count=150):
    """The values of `what` over many examples."""
    return {what(value) for value in examples(strategy, count)}


def bits(x):
    x = torch.view_as_real(x) if x.is_complex() else x
    return torch.where(x.isnan(), 0, x), x.isnan(), x.signbit() & ~x.isnan()


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert all(torch.equal(a, b) for a, b in zip(bits(actual), bits(expected)))


def layout_of(x):
    if x.is_contiguous() and x.storage_offset() == 0:
        return "contiguous"
    return "offset" if x.is_contiguous() else ("expanded" if 0 in x.stride() else "strides")


def test_every_dtype_shape_and_layout_is_drawn():
    assert seen(tensors(), lambda x: x.dtype) == {*kit.FLOATING, *kit.COMPLEX}
    assert seen(tensors(), lambda x: tuple(x.shape)) == set(kit.SHAPES)
    assert seen(tensors(shapes=[(4, 3)]), layout_of) == {"contiguous", "offset", "expanded", "strides"}


@pytest.mark.parametrize("layout", kit.LAYOUTS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.complex64), ids=str)
def test_a_layout_is_what_its_name_says(layout, dtype):
    x = (torch.arange(24.0).reshape(2, 3, 4) + 1).to(dtype)
    y = kit.lay_out(x, layout)
    assert y.shape == x.shape and y.dtype == dtype
    expected = x[:1].expand(2, 3, 4) if layout == "expanded" else x
    assert torch.equal(y, expected)
    strides = {"transposed": (12, 1, 3), "strided": (24, 8, 2), "expanded": (0, 4, 1)}
    assert y.stride() == strides.get(layout, (12, 4, 1))
    assert y.storage_offset() == (1 if layout == "offset" else 0)


@pytest.mark.parametrize("layout", kit.LAYOUTS)
@pytest.mark.parametrize("shape", kit.SHAPES, ids=str)
def test_every_layout_takes_every_shape(layout, shape):
    assert kit.lay_out(torch.ones(shape), layout).shape == shape


SPECIAL = {
    "zero": lambda x: x == 0 and math.copysign(1, x) > 0,
    "minus zero": lambda x: x == 0 and math.copysign(1, x) < 0,
    "subnormal": lambda x: 0 < abs(x) < torch.finfo(torch.float32).smallest_normal,
    "tiny": lambda x: abs(x) == torch.finfo(torch.float32).smallest_normal,
    "huge": lambda x: abs(x) == torch.finfo(torch.float32).max,
    "infinity": lambda x: x == math.inf,
    "minus infinity": lambda x: x == -math.inf,
    "nan": math.isnan,
    "full mantissa": lambda x: abs(x) < 10 and x * 2**20 != round(x * 2**20),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values_are_drawn(name):
    def holds_one(x):
        return any(map(SPECIAL[name], x.flatten().tolist()))

    assert True in seen(tensors([torch.float32], [(4, 3)]), holds_one)


def test_values_are_limited_to_the_kinds_asked_for():
    assert seen(tensors(values=kit.FINITE), lambda x: bool(x.isfinite().all())) == {True}
    with_squares = tensors(values=kit.ORDINARY)
    assert seen(with_squares, lambda x: bool(x.isfinite().all() and x.abs().square().isfinite().all())) == {True}
    only_nan = tensors([torch.float16], [(3,)], values=["nan"])
    assert seen(only_nan, lambda x: bool(x.isnan().all()), count=20) == {True}
    assert seen(tensors([torch.float32], [(3,)], values=["infinite"]), lambda x: bool(x.isinf().all())) == {True}


def test_special_values_are_exact_among_ordinary_ones():
    largest = torch.finfo(torch.float32).max
    drawn = examples(tensors([torch.float32], [(4, 3)], values=("ordinary", "huge")))
    found = {abs(number) for x in drawn for number in x.flatten().tolist() if abs(number) > 10}
    assert found == {largest, largest / 2, largest / 4}


def test_an_unknown_kind_of_value_or_layout_is_an_error():
    for strategy in (tensors(values=["nans"]), tensors(values=[]), tensors(layouts=["channels first"])):
        with pytest.raises(ValueError, match="tensors: "):
            simplest(strategy)


def test_tensors_shrink_to_a_scalar_zero():
    x = simplest(tensors())
    assert source(x) == "torch.tensor(0.0, dtype=torch.float32)"


@pytest.mark.parametrize(
    "condition, expected",
    [
        (lambda x: bool((x != 0).any()), "torch.tensor(1.0, dtype=torch.float32)"),
        (lambda x: bool((x < -5).any()), "torch.tensor(-10.0, dtype=torch.float32)"),
        (lambda x: bool(x.isnan().any()), "torch.tensor(torch.nan, dtype=torch.float32)"),
        (lambda x: x.dtype == torch.bfloat16 and x.ndim == 2, "torch.zeros((2, 2), dtype=torch.bfloat16)"),
        (lambda x: len(set(x.flatten().tolist())) > 1, "torch.tensor([0.0, 1.0], dtype=torch.float32)"),
        (lambda x: not x.is_contiguous(), "torch.zeros((3,), dtype=torch.float32).as_strided((2,), (2,), 0)"),
    ],
    ids=["not zero", "negative", "nan", "bfloat16 matrix", "two numbers", "layout"],
)
def test_a_false_property_of_tensors_fails_with_the_simplest_example(condition, expected):
    assert source(simplest(tensors(kit.FLOATING), condition)) == expected


@pytest.mark.parametrize(
    "x, expected",
    [
        (torch.tensor(0.1), "torch.tensor(0.1, dtype=torch.float32)"),
        (torch.tensor(1 / 3), "torch.tensor(0.33333334, dtype=torch.float32)"),
        (torch.tensor(1 / 3, dtype=torch.bfloat16), "torch.tensor(0.334, dtype=torch.bfloat16)"),
        (torch.tensor([1, -2]), "torch.tensor([1, -2], dtype=torch.int64)"),
        (torch.tensor([-0.0, -0.0]), "torch.full((2,), -0.0, dtype=torch.float32)"),
        (torch.tensor(1 - 2j), "torch.tensor(complex(1.0, -2.0), dtype=torch.complex64)"),
        (torch.tensor([[1.0, 2.0]]).mT, "torch.tensor([[1.0, 2.0]], dtype=torch.float32).mT"),
        (torch.tensor([1.0]).expand(3), "torch.ones((1,), dtype=torch.float32).expand((3,))"),
        (torch.arange(1000.0)[998:], "torch.tensor([998.0, 999.0], dtype=torch.float32).as_strided((2,), (1,), 0)"),
    ],
)
def test_the_source_is_short(x, expected):
    assert source(x) == expected


@settings(PROFILE, max_examples=300)
@given(tensors())
def test_the_source_of_a_tensor_makes_it_again(x):
    again = eval(source(x), NAMES)
    assert_same(again, x)
    if x.numel():
        assert again.stride() == x.stride() and again.storage_offset() == x.storage_offset()


@settings(PROFILE)
@given(params((*kit.FLOATING, *kit.COMPLEX), min_leaves=0))
def test_hypothesis_prints_trees_as_source_that_makes_them_again(drawn):
    again = eval(pretty(drawn), NAMES)
    assert tree.flatten(again)[1] == tree.flatten(drawn)[1]
    for a, b in zip(tree.leaves(again), tree.leaves(drawn)):
        assert_same(a, b)


def test_trees_hold_every_container_and_none():
    def kinds(drawn):
        inner = tree.children(drawn) or {}
        return frozenset({type(drawn)}.union(*(kinds(part) for part in inner.values())))

    found = frozenset().union(*seen(params(min_leaves=0), kinds))
    assert found == {dict, list, tuple, Empty, Single, Layer, Triple, type(None), torch.Tensor}


def test_names_are_dotted_and_unicode_and_do_not_repeat():
    paths = {
        name for found in seen(params(), lambda t: tuple(p for p, _ in tree.leaves_with_path(t))) for name in found
    }
    assert any("layer.0" in path for path in paths) and any("β" in path for path in paths)


def test_the_number_of_leaves_keeps_its_bounds():
    def count(drawn):
        return len(tree.leaves(drawn))

    assert seen(params(max_leaves=3), count) == {1, 2, 3}
    assert seen(params(min_leaves=0, max_leaves=2), count) == {0, 1, 2}
    assert seen(params(absent=False), lambda t: None in [leaf for _, leaf in tree.leaves_with_path(t)]) == {False}


def test_leaves_may_be_of_any_strategy():
    assert simplest(pytrees(st.integers(0, 9))) == {}
    assert simplest(pytrees(st.integers(0, 9)), lambda t: sum(tree.leaves(t)) > 12) == {"a": 4, "b": 9}


ZERO = "torch.tensor(0.0, dtype=torch.float32)"


@pytest.mark.parametrize(
    "condition, expected",
    [
        (lambda t: True, ZERO),
        (lambda t: isinstance(t, list), f"[{ZERO}, {ZERO}]"),
        (lambda t: len(tree.leaves(t)) >= 2, f"{{'a': {ZERO}, 'b': {ZERO}}}"),
        (lambda t: None in [leaf for _, leaf in tree.leaves_with_path(t)], f"{{'a': None, 'b': {ZERO}}}"),
        (lambda t: any(bool((leaf >= 2).any()) for leaf in tree.leaves(t)), ZERO.replace("0.0", "2.0")),
        (lambda t: any(path.count(".") > 1 for path, _ in tree.leaves_with_path(t)), None),
    ],
    ids=["any", "list", "two leaves", "absent", "a number", "deep"],
)
def test_a_false_property_of_parameters_fails_with_the_simplest_example(condition, expected):
    found = simplest(params(), condition)
    assert len(tree.leaves(found)) <= 2 and all(bool((leaf.abs() <= 2).all()) for leaf in tree.leaves(found))
    assert expected is None or source(found) == expected


def test_draws_are_the_same_in_each_run():
    assert [history(params()) for _ in range(2)] == [history(params())] * 2


def history(strategy):
    return [source(value) for value in examples(strategy, 30)]


def test_no_global_random_state_is_touched():
    before = torch.get_rng_state()
    history(params())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_tensor_is_shared_between_examples():
    """A test that mutates what it was given must not change the next example."""

    @settings(PROFILE, max_examples=60)
    @given(tensors([torch.float32], values=kit.ORDINARY, layouts=["contiguous"]))
    def run(x):
        assert not bool((x == 777).any())
        x.fill_(777)

    run()
