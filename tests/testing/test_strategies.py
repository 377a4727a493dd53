"""Strategies for gradients, transformations and states: what they draw, and how it shrinks."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

import funcopt as fo
from funcopt import tree
from funcopt.testing import strategies as kit
from funcopt.testing.compositions import WRAPPERS, link_factories, wrapped
from funcopt.testing.printing import source
from funcopt.testing.strategies import gradient_sequences_for, gradients_for, params, states, transformations
from tests.catalogue import ENTRIES
from tests.testing.search import PROFILE, examples, simplest

PARAMS = {"a": {"weight": torch.ones(2, 3), "bias": torch.ones(3, dtype=torch.bfloat16)}, "b": [torch.ones(()), None]}
ALL_DTYPES = (*kit.FLOATING, *kit.COMPLEX)


def structure(values):
    return tree.flatten(values)[1]


def assert_fits(gradient, parameters, absent=False):
    assert structure(gradient) == structure(parameters)
    for g, p in zip(tree.flatten(gradient)[0], tree.flatten(parameters)[0]):
        if g is None:
            assert p is None or absent
        else:
            assert (g.dtype, g.shape) == (p.dtype, p.shape) and bool(g.isfinite().all())


# Gradients


@settings(PROFILE)
@given(params(ALL_DTYPES, min_leaves=0).flatmap(lambda p: st.tuples(st.just(p), gradients_for(p, absent=True))))
def test_gradients_fit_the_parameters(drawn):
    assert_fits(drawn[1], drawn[0], absent=True)


@settings(PROFILE)
@given(params(ALL_DTYPES, min_leaves=0).flatmap(lambda p: st.tuples(st.just(p), gradient_sequences_for(p))))
def test_sequences_of_gradients_fit_the_parameters(drawn):
    assert 1 <= len(drawn[1]) <= 5
    for gradient in drawn[1]:
        assert_fits(gradient, drawn[0], absent=True)


def wide(gradients):
    """Each step's numbers in one float64 tensor."""
    return [torch.cat([leaf.flatten().to(torch.float64) for leaf in tree.leaves(step)]) for step in gradients]


def ratio(gradients):
    first, *later = wide(gradients)
    return [step.abs().sum() / first.abs().sum() for step in later]


FACTS = {
    "zero": lambda steps: not any(step.any() for step in wide(steps)),
    "constant": lambda steps: all(torch.equal(step, wide(steps)[0]) for step in wide(steps)),
    "alternating": lambda steps: all(
        torch.equal(step, wide(steps)[0] * (-1) ** i) for i, step in enumerate(wide(steps))
    ),
    "vanishing": lambda steps: all(r <= 0.11 ** (i + 1) for i, r in enumerate(ratio(steps)) if r == r),
    "exploding": lambda steps: all(r >= 9.9 ** (i + 1) for i, r in enumerate(ratio(steps)) if r == r),
    "sparse": lambda steps: all(int((step != 0).sum()) <= 6 for step in wide(steps)),
    "absent": lambda steps: len({i for s in steps for i, g in enumerate(tree.flatten(s)[0]) if g is None} - {3}) <= 1,
    "normal": lambda steps: True,
}


@pytest.mark.parametrize("kind", kit.SEQUENCES)
def test_a_sequence_is_of_its_kind(kind):
    drawn = examples(gradient_sequences_for(PARAMS, 4, kinds=[kind]), 60)
    assert all(len(steps) == 4 and FACTS[kind](steps) for steps in drawn)
    assert kind == "zero" or any(step.any() for steps in drawn for step in wide(steps))


def test_exploding_gradients_stay_finite_in_half_precision():
    half = torch.ones(3, dtype=torch.float16)
    drawn = examples(gradient_sequences_for(half, 8, kinds=["exploding"]), 50)
    assert all(bool(step.isfinite().all()) for steps in drawn for step in steps)
    assert any(bool((steps[-1].abs() == torch.finfo(torch.float16).max).any()) for steps in drawn)


def test_a_leaf_is_absent_in_some_steps_and_present_in_others():
    drawn = examples(gradient_sequences_for(PARAMS, 4, kinds=["absent"]), 60)
    counts = {sum(leaf is None for step in steps for leaf in tree.flatten(step)[0]) - 4 for steps in drawn}
    assert counts >= {1, 2, 3, 4}


def test_no_two_steps_share_a_tensor():
    for steps in examples(gradient_sequences_for(PARAMS, 3), 60):
        addresses = [leaf.data_ptr() for step in steps for leaf in tree.leaves(step)]
        assert len(set(addresses)) == len(addresses)


def test_an_unknown_kind_of_sequence_is_an_error():
    with pytest.raises(ValueError, match=r"gradient_sequences_for: kinds must hold some of .*got kinds=\('noisy',\)"):
        simplest(gradient_sequences_for(PARAMS, kinds=["noisy"]))


ZEROS = {
    "a": {"weight": torch.zeros(2, 3), "bias": torch.zeros(3, dtype=torch.bfloat16)},
    "b": [torch.zeros(()), None],
}


def test_leaves_have_gradients_of_their_own():
    alike = {"a": torch.ones(2), "b": torch.ones(2)}
    assert any(not torch.equal(g["a"], g["b"]) for g in examples(gradients_for(alike), 30))


def test_gradients_shrink_to_one_step_of_zeros():
    assert source(simplest(gradients_for(PARAMS))) == source(ZEROS)
    assert source(simplest(gradient_sequences_for(PARAMS))) == source([ZEROS])


def test_a_false_property_of_gradients_fails_with_the_fewest_steps_and_one_number():
    found = simplest(
        gradient_sequences_for(torch.ones(3)), lambda steps: len(steps) > 2 and any(s.any() for s in steps)
    )
    assert source(found) == source([torch.ones(3)] * 3)


def test_parameters_and_gradients_shrink_together():
    """The failing example of a wrong rule: one that loses its sign in the second step."""

    def fails(drawn):
        steps = drawn[1]
        return len(steps) > 1 and any(bool((leaf < 0).any()) for leaf in tree.leaves(steps[1]))

    both = params().flatmap(lambda p: st.tuples(st.just(p), gradient_sequences_for(p)))
    parameters, steps = simplest(both, fails)
    assert source(parameters) == "torch.tensor(0.0, dtype=torch.float32)"
    assert len(steps) == 2 and steps[1].numel() == 1 and steps[1].item() == -1


# Transformations and states


def members(transformation):
    """The names in the call of a transformation, its own first."""
    if isinstance(transformation, tuple):  # the member of a named chain
        transformation = transformation[1]
    call = transformation.call
    parts = [*call.args, *call.kwargs.values(), *call.kwargs.get("transforms", {}).values()]
    inner = [part for part in parts if isinstance(part, (fo.GradientTransformation, tuple))]
    return [call.name, *(name for part in inner for name in members(part))]


def test_every_factory_of_the_library_is_composed():
    names = {entry.name for entry in ENTRIES if entry.build is None}
    assert set(link_factories()) == {name for name in names if ".wrappers." not in getattr(fo, name).__module__}


def test_every_wrapper_is_composed():
    drawn = examples(wrapped(st.just(fo.identity())), 150)
    assert {transformation.call.name for transformation in drawn} == set(WRAPPERS)
    masks = [t.call.kwargs["mask"] for t in drawn if "mask" in t.call.kwargs]
    assert {mask for mask in masks if not callable(mask)} == {True, False}
    assert all(callable(mask) or isinstance(mask, bool) for mask in masks), "1 is equal to True, and no mask"


def test_compositions_have_chains_wrappers_and_injected_hyperparameters():
    names = {name for transformation in examples(transformations(2), 150) for name in members(transformation)}
    assert names & set(WRAPPERS) and names >= {"chain", "named_chain"}
    assert any(name.startswith("inject_hyperparams(") for name in names)


def test_depth_bounds_the_nesting():
    assert not {"chain", "named_chain"} & {name for t in examples(transformations(1), 60) for name in members(t)}
    deep = [t for t in examples(transformations(3), 200) if "chain" in t.call.name]
    assert any("chain(" in repr(t)[6:] for t in deep)
    with pytest.raises(ValueError, match="transformations: max_depth must be at least 1, got max_depth=0"):
        transformations(0)


@settings(PROFILE, max_examples=150)
@given(st.data())
def test_transformations_run_on_drawn_parameters_and_gradients(data):
    complex = data.draw(st.booleans())
    tx = data.draw(transformations(3, complex=complex, as_tensors=data.draw(st.booleans())))
    parameters = data.draw(params(ALL_DTYPES if complex else kit.FLOATING, min_leaves=0))
    state = data.draw(states(tx, parameters))
    updates, after = tx.update(data.draw(gradients_for(parameters, absent=True)), state, parameters)
    assert structure(updates) == structure(parameters) and structure(after) == structure(tx.init(parameters))


@pytest.mark.slow
def test_transformations_shrink_to_the_identity_and_to_one_member():
    assert repr(simplest(transformations(3))) == "identity()"
    assert repr(simplest(transformations(3), lambda t: "sgd" in repr(t))) == "sgd(learning_rate=0.1)"
    assert repr(simplest(transformations(3), lambda t: "chain" in repr(t))) == "chain(identity())"
    found = simplest(transformations(2), lambda t: "adagrad" in repr(t) and "chain" in repr(t))
    assert repr(found) == "chain(adagrad(learning_rate=0.1))"


def test_states_come_after_some_steps_and_shrink_to_the_first():
    tx = fo.adam(0.1)
    assert {int(state[0].count) for state in examples(states(tx, PARAMS), 60)} == {0, 1, 2, 3}
    assert source(simplest(states(tx, PARAMS))) == source(tx.init(PARAMS))
