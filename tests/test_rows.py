"""Rules that see several leaves at once: the same numbers as leaf by leaf, and when leaves stay alone."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, vmap

import funcopt as fo
from funcopt import numerics, rows, several, tree
from funcopt.testing.declared import Declared
from funcopt.testing.trajectory import generic
from tests.catalogue import CASES, case_id
from tests.testing.declarations import declared
from tests.trees import assert_identical, draw

SHAPES = {  # masks of the catalogue are written for these
    "a": {"bias": torch.empty(3), "weight": torch.empty(2, 3)},
    "b": [torch.empty(()), torch.empty(0, 2)],
    "c": torch.empty(2, 1, 2),
}
LEAVES = [torch.full((i + 1,), float(i + 1)) for i in range(4)]


def steps(tx, dtype, extra):
    params = generic(SHAPES, 1, dtype)
    state = tx.init(params)
    found = []
    for seed in (2, 3):
        grads = generic(SHAPES, seed, dtype)
        if seed == 3:
            grads["a"]["weight"] = None
        updates, state = tx.update(grads, state, params, **extra)
        found.append((updates, state))
        params = fo.apply_updates(params, updates)
    return found, params


@pytest.fixture
def alone(monkeypatch):
    """A function after which no leaf is taken together with another."""
    return lambda: monkeypatch.setattr(rows, "is_eager", lambda: False)


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_the_catalogue_is_the_same_bit_by_bit(entry, case, alone, monkeypatch):
    tx = entry.make(**case)
    extra = (declared(entry, case) or Declared()).extra or {}
    together = rows._apply_to_several
    given_up = []

    def watched(*args):
        made = together(*args)
        given_up.append(made is None)
        return made

    monkeypatch.setattr(rows, "_apply_to_several", watched)
    dtypes = [torch.float32, torch.bfloat16, *([torch.complex64] if entry.complex else [])]
    for found in [(dtype, steps(tx, dtype, extra)) for dtype in dtypes]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "is_eager", lambda: False)
            assert_identical(found[1], steps(tx, found[0], extra))
    assert not any(given_up), "a rule that is declared elementwise does something that no several leaves can do"


def number_of_calls(leaves):
    """How often a rule is called that is declared elementwise."""
    calls = []

    def rule(g):
        calls.append(g)
        return 2 * g

    tree.map_rule(rule, leaves, elementwise=True)
    return len(calls)


def test_three_hundred_leaves_are_few_calls():
    leaves = [torch.ones(shape) for shape in [(64, 64), (64,)] * 150]
    assert number_of_calls(leaves) == -(-150 * (64 * 64 + 64) // rows.BATCH)
    assert number_of_calls(LEAVES) == 1
    assert number_of_calls([torch.ones(rows.BATCH + 1), *LEAVES]) == 2


@pytest.mark.parametrize(
    "leaves, calls",
    [
        ([torch.ones(2), torch.ones(3, dtype=torch.float64), torch.ones(2)], 2),
        ([torch.ones(2), None, torch.ones(2)], 1),
        ([torch.ones(2), torch.nn.Parameter(torch.ones(2), requires_grad=False), torch.ones(3)], 1),
        ([torch.ones(2, requires_grad=True), torch.ones(2)], 2),
        ([torch.ones(2, device="meta"), torch.ones(2, device="meta")], 1),
    ],
)
def test_rows_of_one_kind_are_taken_together(leaves, calls):
    assert number_of_calls(leaves) == calls


def test_numbers_that_the_rule_reads_are_the_same_in_a_batch():
    found = tree.map_rule(
        lambda g, keep, factor: g * factor if keep else g,
        LEAVES,
        reads=([True, False, True, True], [2.0, 2.0, 2.0, 3.0]),
        elementwise=True,
    )
    assert [leaf[0].item() for leaf in found] == [2.0, 2.0, 6.0, 12.0]


def test_results_are_leaves_with_memory_of_their_own():
    states = [leaf.clone() for leaf in LEAVES]
    updates, first, second = tree.map_rule(
        lambda g, m, n: (g, m, m), LEAVES, states, [leaf.clone() for leaf in LEAVES], elementwise=True
    )
    third = tree.map_rule(lambda g, m: (total := g + m, total), LEAVES, states, elementwise=True)
    fourth = tree.map_rule(lambda g, m: (g.contiguous(), m.to(g.dtype)), LEAVES, states, elementwise=True)
    results = [*updates, *first, *second, *third[0], *third[1], *fourth[0], *fourth[1]]
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*LEAVES, *states, *results)}
    assert len(storages) == 2 * 4 + 7 * 4
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in results)


def test_a_scalar_keeps_0d_leaves_in_their_own_arithmetic():
    factor = torch.tensor(0.1, dtype=torch.float64)
    leaves = [*torch.linspace(0, 1, 50).unbind(), torch.tensor([0.3]), torch.tensor([[0.7]])]
    expected = [tree.map_rule(lambda g: factor * g, leaf) for leaf in leaves]
    assert_identical(tree.map_rule(lambda g: factor * g, leaves, elementwise=True), expected)


def test_shapes_that_do_not_belong_together_are_told():
    with pytest.raises(ValueError, match=r"have the shapes \[\(1,\), \(2, 2\)\]"):
        tree.map_rule(torch.add, LEAVES, reads=([torch.ones(2, 2), *LEAVES[1:]],), elementwise=True)


@pytest.mark.parametrize(
    "rule",
    [
        lambda g: g * numerics.norm(g),
        lambda g: g.view(-1).flip(0),
        lambda g: g / g.numel(),
        lambda g: g / g.shape[0],
        lambda g: torch.cat([g, g])[: g.numel()],
        lambda g: g if (g > 2).all() else -g,
        lambda g: g.new_full(g.shape, 3.0),
    ],
)
def test_a_wrong_declaration_does_no_harm(rule):
    """Operations are those on each leaf, so that a norm is that of a leaf; what differs between leaves is not read."""
    assert_identical(tree.map_rule(rule, LEAVES, elementwise=True), tree.map_rule(rule, LEAVES))


def test_leaves_with_derivatives_stay_alone():
    leaves = [leaf.clone().requires_grad_() for leaf in LEAVES]
    assert number_of_calls(leaves) == 4
    with torch.no_grad():
        assert number_of_calls(leaves) == 1
    rate = torch.tensor(0.5, requires_grad=True)
    sum(leaf.sum() for leaf in tree.map_rule(lambda g: rate * g, LEAVES, elementwise=True)).backward()
    assert rate.grad == sum(leaf.sum() for leaf in LEAVES)
    with forward_ad.dual_level():
        assert number_of_calls(LEAVES) == 4


def test_transforms_of_functions_see_leaf_by_leaf(alone):
    optimizer = fo.adamw(0.1, weight_decay=0.1)
    params = draw(1)
    state = optimizer.init(params)

    def update(grads):
        return optimizer.update(grads, state, params)[0]

    def total(grads):
        return sum(leaf.square().sum() for leaf in tree.leaves(update(grads)))

    assert vmap(lambda g: torch.tensor(number_of_calls([g, g + 1])))(torch.ones(1, 2)) == 2
    with torch.device("cpu"):  # a mode that sees every function of torch
        assert not rows.is_eager()
    batched = tree.map(lambda *leaves: torch.stack(leaves), *[draw(seed) for seed in (2, 3)])
    found = vmap(update)(batched), grad(total)(draw(2)), update(draw(2))
    alone()
    assert_identical(found, (vmap(update)(batched), grad(total)(draw(2)), update(draw(2))))


def test_sums_keep_leaves_without_an_update():
    params = [torch.ones(2), None, torch.ones(3), torch.ones(1)]
    moved = tree.add(params, [torch.ones(2), None, None, torch.ones(1)])
    assert [None if leaf is None else leaf[0].item() for leaf in moved] == [2, None, 1, 2]
    assert moved[2] is not params[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_at_once_are_those_on_each(dtype):
    x, y = [leaf.to(dtype) / 3 for leaf in LEAVES], [leaf.to(dtype) / 7 - 0.3 for leaf in LEAVES]
    y[0][0] = torch.nan
    s = torch.tensor(0.1, dtype=torch.float64)
    for operation in (
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: s - a,
        lambda a, b: b - s,
        lambda a, b: 2 - a,
        lambda a, b: a * b,
        lambda a, b: s * a + 0.1 * b,
        lambda a, b: a / b,
        lambda a, b: s / b + 3 / a,
        lambda a, b: a / s + b / 0.7,
        lambda a, b: torch.add(a, b, alpha=0.3) + torch.sub(a, b, alpha=0.3),
        lambda a, b: torch.div(a, b, rounding_mode="floor"),
        lambda a, b: torch.lerp(a, b, 0.3) + torch.lerp(a, b, s.to(dtype)),
        lambda a, b: torch.clamp(b, min=0.0) + b.clamp(min=-0.1, max=0.1) + b.clamp(max=s),
        lambda a, b: -a + abs(b) + a.sqrt() + b.square() + a.clone().sqrt_(),
        lambda a, b: torch.maximum(a, b) + torch.where(b > 0, a, 0) + b.sign() ** 3 + 2.0**a,
        lambda a, b: ((a > b) | ~(a == b) & (b <= a) ^ (a != b)).to(a.dtype),
    ):
        found = operation(several.Several(x), several.Several(y))
        assert_identical(list(found.tensors), [operation(a, b) for a, b in zip(x, y)])
