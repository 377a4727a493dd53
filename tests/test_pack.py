"""Packing: the same numbers in fewer buffers, refused where they would not be the same."""

import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, OPTIMIZERS, case_id, storage_tolerance
from tests.trees import assert_close, assert_identical, draw, stack

SHARED = [
    (entry, case)
    for entry, case in CASES
    if entry.make(**case).coupling != "leafwise" and not case.get("mask") and not case.get("weight_decay_mask")
]
WHOLE = [(entry, case) for entry, case in CASES if entry.make(**case).coupling == "leafwise"]


def mixed():
    return {
        "a": [torch.randn(2, 3), None, torch.randn((), dtype=torch.float64)],
        "b": {"big": torch.randn(5, 4), "half": torch.randn(3, dtype=torch.bfloat16), "none": torch.zeros(0, 2)},
        "c": torch.randn(4),
    }


@pytest.mark.parametrize("alone", [1, 20, 1000])
def test_round_trip(alone):
    params = mixed()
    before = tree.clone(params)
    packed = fo.pack(params, alone=alone)
    assert_identical(fo.unpack(packed), params)
    for buffer in packed.buffers:
        buffer.zero_()
    assert_identical(params, before, "a buffer shares memory with the leaves")


def test_what_shares_a_buffer():
    packed = fo.pack(mixed(), alone=20)
    assert packed.layout.names == ("float32", "float64", "b.big", "bfloat16")
    assert [tuple(buffer.shape) for buffer in packed.buffers] == [(10,), (1,), (5, 4), (3,)]
    assert [path for path, _ in tree.leaves_with_path({"mu": packed})] == [
        "mu.float32",
        "mu.float64",
        "mu.b.big",
        "mu.bfloat16",
    ]
    labelled = fo.pack({"w": torch.ones(2, 2), "b": torch.ones(2)}, lambda p: tree.map(lambda x: x.ndim > 1, p))
    assert labelled.layout.names == ("float32[True]", "float32[False]")
    assert repr(labelled) == "Packed(float32[True]: (4,), float32[False]: (2,))"
    by_prefix = fo.pack({"x": [torch.ones(2), torch.ones(2)], "y": torch.ones(1)}, {"x": "left", "y": "right"})
    assert [buffer.numel() for buffer in by_prefix.buffers] == [4, 1]


@pytest.mark.parametrize("params", [{}, [], {"a": None}, torch.ones(2)])
def test_small_trees(params):
    assert_identical(fo.unpack(fo.pack(params)), params)


@pytest.mark.parametrize("entry, case", SHARED, ids=case_id)
def test_packed_is_unpacked(entry, case):
    """The same updates, whatever elementwise or normed transformation it is; for optimizers the same state, too."""
    transformation = entry.make(**case)
    params = draw(1)
    packed = fo.pack(params, alone=12)
    state, packed_state = transformation.init(params), transformation.init(packed)
    for step in range(4):
        grads = draw(10 + step)
        updates, state = transformation.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        packed_updates, packed_state = transformation.update(fo.pack_like(grads, packed), packed_state, packed)
        packed = fo.apply_updates(packed, packed_updates)
    assert_close(fo.unpack(packed), params, rtol=max(1e-14, storage_tolerance(case)))
    if entry in OPTIMIZERS:  # a state of vectors, as that of flatten, has another order in buffers
        assert_close(fo.unpack(packed_state), state, rtol=max(1e-14, storage_tolerance(case)))


@pytest.mark.parametrize("entry, case", WHOLE, ids=case_id)
def test_what_looks_at_whole_leaves_is_refused(entry, case):
    transformation = entry.make(**case)
    with pytest.raises(ValueError, match=r"looks at each leaf as a whole, but the packed buffer 'float64'"):
        fo.chain(fo.identity(), transformation).init(fo.pack(draw(1)))


@pytest.mark.parametrize("entry, case", [case for case in WHOLE if not case[0].ordered], ids=case_id)
def test_whole_leaves_may_lie_alone(entry, case):
    transformation, params, grads = entry.make(**case), {"w": draw(1)["c"]}, {"w": draw(2)["c"]}
    packed = fo.pack(params, alone=1)
    updates, _ = transformation.update(fo.pack_like(grads, packed), transformation.init(packed), packed)
    expected, _ = transformation.update(grads, transformation.init(params), params)
    assert_identical(fo.unpack(updates), expected)


def test_a_mask_is_resolved_on_the_leaves():
    def only_matrices(params):
        return tree.map(lambda leaf: leaf.ndim > 1, params)

    params, grads = draw(1), draw(2)
    masked = fo.adamw(0.1, weight_decay=0.5, mask=only_matrices)
    expected, _ = masked.update(grads, masked.init(params), params)
    packed = fo.pack(params, only_matrices)
    updates, _ = masked.update(fo.pack_like(grads, packed), masked.init(packed), packed)
    assert_close(fo.unpack(updates), expected, rtol=1e-15)
    mixed_up = fo.pack(params)
    with pytest.raises(ValueError, match=r"add_decayed_weights: .*'a\.bias' \(False\) and 'a\.weight' \(True\)"):
        masked.update(fo.pack_like(grads, mixed_up), masked.init(mixed_up), mixed_up)


def loss_of(params):
    return sum((i + 1) * (leaf.to(torch.float64) ** 3).sum() for i, leaf in enumerate(tree.leaves(params)))


def test_gradients_arrive_packed_in_one_gather():
    params = draw(1, torch.float32)
    packed = fo.pack(params)

    def packed_grad(packed):
        return grad(lambda packed: loss_of(fo.unpack(packed)))(packed)

    assert_close(packed_grad(packed), fo.pack_like(grad(loss_of)(params), packed), rtol=1e-6)
    graph = make_fx(lambda buffer: packed_grad(fo.Packed((buffer,), packed.layout)).buffers[0])(packed.buffers[0])
    called = [str(node.target) for node in graph.graph.nodes]
    assert sum("cat" in name for name in called) == 1
    assert not any("zeros" in name or "slice_backward" in name for name in called)


def test_stacked_models():
    models = [draw(seed) for seed in range(3)]
    packed = vmap(lambda params: fo.pack(params))(stack(models))
    assert packed.buffers[0].shape == (3, 3 + 12 + 1 + 12)
    assert_identical(fo.unpack(packed), stack(models))
    optimizer = fo.adam(0.1)
    state = vmap(optimizer.init)(packed)
    updates, _ = vmap(optimizer.update)(packed, state)
    expected, _ = vmap(optimizer.update)(stack(models), vmap(optimizer.init)(stack(models)))
    assert_close(fo.unpack(updates), expected, rtol=1e-15)


def test_a_state_goes_on_unpacked_and_packed_again():
    optimizer, params = fo.adam(0.1), draw(1)
    packed = fo.pack(params)
    _, state = optimizer.update(packed, optimizer.init(packed), packed)
    plain = fo.unpack(state)
    assert tree.flatten(plain)[1] == tree.flatten(optimizer.init(params))[1]
    again = fo.pack_like(plain[0].mu, packed)
    assert_identical(again, state[0].mu)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda packed: fo.pack({"a": 1.0}), "pack: the leaf 'a' must be a tensor, got a float"),
        (lambda packed: fo.pack_like({"a": torch.ones(2), "b": None}, packed), "pack: the leaf 'b' is None"),
        (
            lambda packed: fo.pack_like({"a": torch.ones(2), "b": torch.ones(2)}, packed),
            r"'b' must have the shape \(3,\)",
        ),
        (lambda packed: fo.pack_like({"a": torch.ones(2)}, packed), "'b' is missing"),
        (lambda packed: fo.pack({"a": torch.ones(2)}, {"b": 1}), "'b' is missing"),
    ],
)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(fo.pack({"a": torch.ones(2), "b": torch.ones(3)}))


def train_step(optimizer):
    def step(packed, state, target):
        grads = grad(lambda p: sum(((x - t) ** 2).sum() for x, t in zip(tree.leaves(fo.unpack(p)), target)))(packed)
        updates, state = optimizer.update(grads, state, packed)
        return fo.apply_updates(packed, updates), state

    return step


def test_one_graph_with_donation():
    optimizer = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(fo.cosine_decay_schedule(0.1, 10)))
    packed, target = fo.pack(draw(1, torch.float32)), tree.leaves(draw(2, torch.float32))
    state = optimizer.init(packed)
    step = train_step(optimizer)
    expected = step(*step(packed, state, target), target)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = fo.compile(step, donate_argnums=(0, 1), backend=counter)
    before = tree.leaves((packed, state))
    result = compiled(*compiled(packed, state, target), target)
    assert counter.frame_count == 1
    assert all(new is old for new, old in zip(tree.leaves(result), before))
    assert_close(result, expected, rtol=2e-6)


def elementwise_kernels(leaves):
    """How many kernels of a compiled, donated AdamW step compute a root, for so many small leaves."""
    torch._dynamo.reset()
    optimizer = fo.adamw(0.1)
    packed = fo.pack([torch.randn(8, 8) for _ in range(leaves)])

    def step(packed, state, grads):
        updates, state = optimizer.update(grads, state, packed)
        return fo.apply_updates(packed, updates), state

    compiled = fo.compile(step, donate_argnums=(0, 1))
    _, sources = run_and_get_code(compiled, packed, optimizer.init(packed), tree.clone(packed))
    kernels = re.findall(r"r'''(.*?)'''", "".join(sources), flags=re.DOTALL)
    return sum("sqrt" in kernel for kernel in kernels), len(kernels)


def test_kernels_do_not_grow_with_the_leaves():
    few, many = elementwise_kernels(3), elementwise_kernels(60)
    assert few == many
    assert few[0] == 1
