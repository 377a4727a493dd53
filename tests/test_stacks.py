"""Leaves of one shape in one tensor: what looks at whole leaves does to each what it does to it apart, at once."""

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
from tests.trees import assert_close, assert_identical, draw, stack, weighted_sum

SHAPES = {
    "a": {"bias": (3,), "weight": (4, 3)},
    "b": [(), (0, 3), (4, 3)],
    "c": (2, 3, 2),
    "d": {"bias": (3,), "weight": (4, 3), "only": (5, 2)},
    "e": [(), (0, 3)],
    "f": (2, 3, 2),
}
"""Stacks of two and of three, whose leaves do not follow each other, and one leaf of a shape of its own."""
MATRICES = {"q": (4, 3), "k": (4, 3), "v": (4, 3), "tall": (2, 5), "taller": (2, 5), "bias": (3,), "scale": (3,)}


def is_mask_for_other_leaves(case):
    return any("mask" in name and not callable(value) and value is not None for name, value in case.items())


FIT = [(entry, case) for entry, case in CASES if not is_mask_for_other_leaves(case)]
LEAFWISE = [(entry, case) for entry, case in FIT if entry.make(**case).coupling == "leafwise"]
OTHERS = [(entry, case) for entry, case in FIT if entry.make(**case).coupling != "leafwise"]
LAST_CASES = list({entry.name: (entry, case) for entry, case in LEAFWISE}.values())


def stacked(shapes, seed=1, dtype=torch.float64):
    return fo.pack(draw(seed, dtype, shapes), stack=True)


def trajectory(transformation, params, grads_of, steps=4):
    state = transformation.init(params)
    for step in range(steps):
        updates, state = transformation.update(grads_of(step), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def assert_same_trajectory(transformation, shapes, rtol=1e-12, same_state=True):
    packed = stacked(shapes)
    params, state = trajectory(transformation, draw(1, shapes=shapes), lambda step: draw(10 + step, shapes=shapes))
    found, packed_state = trajectory(transformation, packed, lambda step: stacked(shapes, 10 + step))
    assert_close(fo.unpack(found), params, rtol)
    if same_state:
        assert_close(fo.unpack(packed_state), state, rtol)


# ------------------------------------------------------------------------------------------------------- packing


def test_what_is_stacked():
    packed = stacked(SHAPES)
    assert repr(packed) == (
        "Packed(float64(3): (2, 3), float64(4x3): (3, 4, 3), float64(): (2,), float64(0x3): (2, 0, 3), "
        "float64(2x3x2): (2, 2, 3, 2), d.only: (5, 2))"
    )
    assert_identical(fo.unpack(packed), draw(1, shapes=SHAPES))
    assert packed.buffers[1][2].equal(draw(1, shapes=SHAPES)["d"]["weight"])


def test_dtypes_labels_and_absent_leaves_are_kept_apart():
    params = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2).half(), "d": None, "e": torch.zeros(2)}
    packed = fo.pack(params, {"a": "x", "b": "y", "c": "x", "d": "x", "e": "x"}, stack=True)
    assert repr(packed) == "Packed(float32[x](2): (2, 2), b: (2,), c: (2,))"
    assert_identical(fo.unpack(packed), params)
    assert packed.layout != fo.pack(params, stack=True).layout


def test_stacked_models():
    models = [draw(seed, shapes=SHAPES) for seed in range(3)]
    packed = vmap(lambda params: fo.pack(params, stack=True))(stack(models))
    assert packed.buffers[1].shape == (3, 3, 4, 3)
    assert_identical(fo.unpack(packed), stack(models))


def test_gradients_arrive_in_one_gather():
    packed = fo.pack([torch.randn(2, 2, dtype=torch.float64) for _ in range(5)], stack=True)

    def loss(leaves):
        return sum((i + 1) * (leaf**3).sum() for i, leaf in enumerate(leaves))

    def packed_grad(buffer):
        return grad(lambda packed: loss(fo.unpack(packed)))(fo.Packed((buffer,), packed.layout)).buffers[0]

    assert_close(packed_grad(packed.buffers[0]), torch.stack(grad(loss)(fo.unpack(packed))), rtol=1e-14)
    called = [str(node.target) for node in make_fx(packed_grad)(packed.buffers[0]).graph.nodes]
    assert sum("stack" in name or "cat" in name for name in called) == 1
    assert not any("zeros" in name or "select" in name for name in called)


def test_errors():
    params = draw(1, shapes=MATRICES)
    with pytest.raises(
        ValueError, match=r"scale_by_muon: .*'float64' holds several .* Give stack=True to pack or comp"
    ):
        fo.scale_by_muon().init(fo.pack({"q": params["q"], "k": params["k"]}))
    with pytest.raises(ValueError, match=r"scale_by_muon: the leaf 'float64\(3\)' must be a matrix, got shape \(3,\)"):
        fo.scale_by_muon().init(stacked(MATRICES))
    packed = stacked(MATRICES)
    with pytest.raises(ValueError, match=r"pack: the leaf 'k' must have the shape \(4, 3\), got \(3,\)"):
        fo.pack_like({**params, "k": params["bias"]}, packed)
    only_q = {name: name == "q" for name in params}
    with pytest.raises(ValueError, match=r"pack: 2 of the 3 leaves in the buffer 'float64\(4x3\)' are masked out"):
        fo.pack_like(tree.mask(params, only_q), packed)
    with pytest.raises(ValueError, match=r"freeze: the packed buffer 'float64\(4x3\)' holds leaves .* differently"):
        fo.freeze(fo.sgd(0.1), only_q).init(packed)


# ------------------------------------------------------------------------------------------------ transformations


@pytest.mark.parametrize("entry, case", LEAFWISE, ids=case_id)
def test_whole_leaves_are_those_of_the_stack(entry, case):
    assert_same_trajectory(entry.make(**case), SHAPES, max(1e-12, storage_tolerance(case)))


@pytest.mark.slow
@pytest.mark.parametrize("entry, case", OTHERS, ids=case_id)
def test_everything_else_is_as_before(entry, case):
    same_state = entry in OPTIMIZERS  # a state of vectors, as that of flatten, has another order in buffers
    assert_same_trajectory(entry.make(**case), SHAPES, max(1e-12, storage_tolerance(case)), same_state)


@pytest.mark.parametrize(
    "transformation",
    [
        fo.muon(0.1, weight_decay=0.1, consistent_rms=0.2, adaptive=True),
        fo.muon(0.1, layout="in_out", preconditioning="aol"),
        fo.chain(fo.clip_by_global_norm(0.5), fo.muon(0.1)),
        fo.chain(fo.centralize(), fo.adam(0.1), fo.scale_by_param_block_rms()),
        fo.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9, weight_decay_rate=0.1),
        fo.chain(fo.add_noise(0.1, 0.5), fo.clip_by_block_rms(0.1), fo.zero_nans(), fo.adaptive_grad_clip(0.1)),
        fo.partition(
            {"m": fo.muon(0.1), "v": fo.sgd(0.1)}, fo.by_path({lambda _, leaf: leaf.ndim == 2: "m", "*": "v"})
        ),
        fo.inject_hyperparams(fo.muon)(0.1, beta=0.8),
        fo.chain(fo.scale_by_path({"*": torch.tensor(0.5)}), fo.adamw(0.1)),
    ],
    ids=str,
)
def test_compositions(transformation):
    assert_same_trajectory(transformation, MATRICES)


def test_labels_part_a_stack():
    """A frozen matrix among others of its shape."""
    frozen = fo.by_path({"k": True, "*": False})
    transformation, params, grads = fo.freeze(fo.muon(0.1), frozen), draw(1, shapes=MATRICES), draw(2, shapes=MATRICES)
    packed = fo.pack(params, frozen, stack=True)
    assert packed.layout.names[:2] == ("float64[False](4x3)", "k")
    updates, _ = transformation.update(fo.pack_like(grads, packed), transformation.init(packed), packed)
    expected, _ = transformation.update(grads, transformation.init(params), params)
    assert_close(fo.unpack(updates), expected, rtol=1e-12)


def test_a_packed_tree_within_a_tree():
    optimizer = fo.chain(fo.add_noise(0.1, 0.5), fo.adafactor(0.1, min_dim_size_to_factor=2))
    first, second = draw(1, shapes=MATRICES), draw(2, shapes=MATRICES)
    params = {"first": first, "second": second}
    packed = {"first": fo.pack(first, stack=True), "second": second}
    found, state = trajectory(optimizer, packed, lambda step: packed)
    assert_close(fo.unpack((found, state)), trajectory(optimizer, params, lambda step: params), rtol=1e-12)


def test_real_and_imaginary_parts_in_a_stack():
    optimizer = fo.split_real_and_imaginary(fo.chain(fo.trace(0.9), fo.clip_by_block_rms(0.1)))
    params = draw(1, torch.complex128, MATRICES)
    packed = fo.pack(params, stack=True)
    found, state = trajectory(optimizer, packed, lambda step: packed)
    assert_close(fo.unpack((found, state)), trajectory(optimizer, params, lambda step: params), rtol=1e-12)


def test_results_have_memory_of_their_own():
    packed = stacked(MATRICES)
    same = fo.stateless_with_tree_map(lambda g, p: g).update(packed, fo.EmptyState(), packed)[0]
    constant = tree.map_leafwise(lambda leaf: torch.zeros(2), packed)
    before = tree.clone(packed)
    for buffer in (*same.buffers, *constant.buffers):
        buffer[0].add_(1.0)
    assert_identical(packed, before)
    assert not any(buffer[1:].any() for buffer in constant.buffers)
    found = fo.zero_nans().init(packed).found_nan.buffers[0]
    found[0] = True
    assert found.tolist() == [True, False, False]


# ----------------------------------------------------------------------------------------------------- the modes


def test_vmapped():
    optimizer, models = fo.chain(fo.muon(0.1), fo.clip_by_block_rms(0.5)), [draw(i, shapes=MATRICES) for i in (1, 2)]
    packed = vmap(lambda params: fo.pack(params, stack=True))(stack(models))

    def last(params):
        return trajectory(optimizer, params, lambda step: params, steps=2)

    found = vmap(last)(packed)
    assert_close(fo.unpack(found), vmap(last)(stack(models)), rtol=1e-12)
    assert_close(fo.unpack(found), stack([last(model) for model in models]), rtol=1e-12)


@pytest.mark.parametrize("make", [fo.scale_by_muon, fo.scale_by_factored_rms], ids=["muon", "adafactor"])
def test_differentiated(make):
    """In the momentum, and in a gradient."""
    shapes = {name: shape for name, shape in MATRICES.items() if len(shape) == 2}
    params = draw(1, shapes=shapes)

    def outcome(decay, grads, start, as_given):
        optimizer = make(beta=decay) if make is fo.scale_by_muon else make(decay_rate=decay, min_dim_size_to_factor=2)
        given = grads, tree.map(torch.sin, grads), tree.map(torch.square, grads)
        return weighted_sum(fo.unpack(trajectory(optimizer, start, lambda step: as_given(given[step]), steps=3)[0]))

    packed = fo.pack(params, stack=True)
    decay, grads = torch.tensor(0.9, dtype=torch.float64), draw(2, shapes=shapes)
    expected = grad(outcome, (0, 1))(decay, grads, params, lambda grads: grads)
    found = grad(outcome, (0, 1))(decay, grads, packed, lambda grads: fo.pack_like(grads, packed))
    assert_close(found, expected, rtol=1e-11)
    assert found[0].abs() > 1e-3


QUICK_TO_COMPILE = ("zero_nans", "clip_by_block_rms")


@pytest.mark.parametrize(
    "entry, case",
    [pytest.param(*both, marks=() if both[0].name in QUICK_TO_COMPILE else pytest.mark.slow) for both in LAST_CASES],
    ids=case_id,
)
def test_one_graph_with_donation(entry, case):
    transformation = entry.make(**case)
    shapes = {name: MATRICES[name] for name in ("q", "k", "bias", "scale", "tall")}
    if "muon_weight_dimension_numbers" in case or "weight_dimension_numbers" in case:
        shapes = SHAPES
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(packed, state, grads):
        updates, state = transformation.update(grads, state, packed)
        return fo.apply_updates(packed, updates), state

    compiled = fo.compile(step, donate_argnums=(0, 1), backend=counter)
    packed = stacked(shapes)
    carried = tree.clone((packed, transformation.init(packed)))
    before = tree.leaves(carried)
    graphs = []
    for i in range(3):
        carried = compiled(*carried, stacked(shapes, 10 + i))
        graphs.append(counter.frame_count)  # Dynamo may trace the first twice, with floats as constants then
    assert graphs[0] == graphs[-1]
    assert all(new is old for new, old in zip(tree.leaves(carried), before))
    expected = trajectory(transformation, packed, lambda i: stacked(shapes, 10 + i), steps=3)
    assert_close(carried, expected, rtol=max(1e-12, storage_tolerance(case)))


@pytest.mark.parametrize(
    "transformation, in_place",
    [
        (fo.chain(fo.scale_by_factored_rms(min_dim_size_to_factor=2), fo.zero_nans()), False),
        pytest.param(fo.chain(fo.clip_by_global_norm(0.1), fo.muon(0.1)), False, marks=pytest.mark.slow),
        pytest.param(fo.muon(0.1), True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compile_update(transformation, in_place):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    step = fo.compile_update(transformation, stack=True, in_place=in_place, backend=counter)
    params = draw(1, shapes=MATRICES)
    carried = tree.clone((params, transformation.init(params)))
    for i in range(3):
        carried = step(*carried, draw(10 + i, shapes=MATRICES))
    assert counter.frame_count == 1
    assert_close(carried, trajectory(transformation, params, lambda i: draw(10 + i, shapes=MATRICES), 3), rtol=1e-12)
    with pytest.raises(ValueError, match=r"looks at each leaf as a whole.*Give stack=True to pack or compile_update"):
        fo.compile_update(transformation, backend=counter)(params, transformation.init(params), params)


# -------------------------------------------------------------------------------------------------------- kernels


def muon_step(leaves):
    optimizer = fo.muon(0.1)
    packed = fo.pack([torch.randn(8, 6) for _ in range(leaves)], stack=True)

    def step(packed, state, grads):
        updates, state = optimizer.update(grads, state, packed)
        return fo.apply_updates(packed, updates), state

    return step, (packed, optimizer.init(packed), tree.clone(packed))


def operations(leaves):
    step, arguments = muon_step(leaves)
    given, structure = tree.flatten(arguments)
    graph = make_fx(lambda *given: tree.leaves(step(*tree.unflatten(list(given), structure))))(*given)
    graph.graph.eliminate_dead_code()  # the views that masks and labels are asked of
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_operations_do_not_grow_with_the_leaves():
    few, many = operations(3), operations(40)
    assert few == many
    assert few.count("aten.bmm.default") == 15


@pytest.mark.slow
def test_kernels_do_not_grow_with_the_leaves():
    counts = []
    for leaves in (3, 40):
        torch._dynamo.reset()
        step, arguments = muon_step(leaves)
        expected = step(*arguments)
        result, sources = run_and_get_code(fo.compile(step, donate_argnums=(0, 1)), *arguments)
        assert_close(result, expected, rtol=2e-5)
        source = "".join(sources)
        counts.append(
            [len(re.findall(pattern, source)) for pattern in (r"extern_kernels\.bmm\(", r"async_compile\.cpp")]
        )
    assert counts[0] == counts[1]
    assert counts[0][0] == 15
