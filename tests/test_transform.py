"""The protocol: composition, application of updates, and errors that say what to do."""

import pytest
import torch
from torch.func import vmap

import funcopt as fo
from funcopt import tree
from funcopt.transform import check_transformation
from tests.trees import assert_close, assert_identical, draw, run


def test_a_transformation_unpacks_to_two_functions():
    init, update = fo.sgd(0.5)
    params = {"w": torch.ones(2)}
    updates, _ = update(params, init(params))
    assert updates["w"].tolist() == [-0.5, -0.5]


def test_extra_arguments_travel_to_every_member():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append((value, extra))
        return updates, state

    spy = fo.GradientTransformation(lambda params: fo.EmptyState(), update)
    both = fo.chain(fo.adam(0.1), fo.named_chain(("inner", fo.chain(spy)), ("outer", spy)))
    params = draw(1)
    both.update(draw(2), both.init(params), params, value=3.0, other="x")
    assert seen == [(3.0, {"other": "x"})] * 2


def test_an_empty_chain_is_the_identity():
    params = draw(1)
    assert fo.chain().init(params) == ()
    updates, state = fo.chain().update(draw(2), (), params)
    assert_identical(updates, draw(2))
    assert state == ()


def test_chain_is_associative():
    a, b, c = fo.clip_by_global_norm(1.0), fo.scale_by_adam(), fo.scale_by_learning_rate(0.1)
    expected, _ = run(fo.chain(a, b, c), draw(1), 4)
    for nested in (fo.chain(fo.chain(a, b), c), fo.chain(a, fo.chain(b, c)), fo.chain(fo.identity(), a, b, c)):
        assert_identical(run(nested, draw(1), 4)[0], expected)


def test_named_chain_is_chain_with_a_state_by_name():
    members = {"clip": fo.clip(0.5), "momentum": fo.trace(0.9)}
    named, plain = fo.named_chain(*members.items()), fo.chain(*members.values())
    updates, state = run(named, draw(1), 3)
    expected, expected_state = run(plain, draw(1), 3)
    assert_identical(updates, expected)
    assert list(state) == ["clip", "momentum"]
    assert_identical(tuple(state.values()), expected_state)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (
            lambda: fo.chain(fo.sgd(0.1), "adam"),
            TypeError,
            "member 1 must be a GradientTransformation, got 'adam'",
        ),
        (lambda: fo.chain(fo.sgd), TypeError, "chain: member 0 must be a GradientTransformation"),
        (lambda: fo.named_chain(fo.sgd(0.1)), TypeError, "named_chain: expected pairs"),
        (lambda: fo.named_chain(("a", 1)), TypeError, "named_chain: member 'a' must be"),
        (lambda: fo.named_chain(("a", fo.sgd(1.0)), ("a", fo.sgd(1.0))), ValueError, "named_chain: names must differ"),
    ],
)
def test_chains_check_their_members(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("chained", [fo.chain(fo.sgd(0.1), fo.clip(1.0)), fo.named_chain(("a", fo.clip(1.0)))])
@pytest.mark.parametrize("state", [(), {}, None, [1, 2], (1, 2, 3), {"b": 1}])
def test_a_state_of_another_chain_is_refused(chained, state):
    with pytest.raises(ValueError, match=r"chain: update expects .*, got a .*Pass the state"):
        chained.update(draw(1), state)


@pytest.mark.parametrize(
    "transformation, name",
    [
        (fo.adamw(0.1), "add_decayed_weights"),
        (fo.adaptive_grad_clip(0.1), "adaptive_grad_clip"),
        (fo.keep_params_nonnegative(), "keep_params_nonnegative"),
    ],
)
def test_missing_params_are_reported_by_name(transformation, name):
    with pytest.raises(ValueError, match=f"{name}: update needs the parameters"):
        transformation.update(draw(1), transformation.init(draw(1)))


def test_what_a_wrapper_is_given_must_be_a_transformation():
    check_transformation("wrap", inner=fo.sgd(0.1))
    with pytest.raises(TypeError, match=r"wrap: inner must be a GradientTransformation, got inner=<function sgd"):
        check_transformation("wrap", inner=fo.sgd)


def test_coupling_of_a_chain_is_that_of_its_widest_member():
    assert fo.chain(fo.scale(1.0), fo.adam(0.1)).coupling == "elementwise"
    assert fo.chain(fo.scale(1.0), fo.centralize()).coupling == "leafwise"
    assert fo.chain(fo.centralize(), fo.clip_by_global_norm(1.0)).coupling == "treewise"
    assert fo.chain().coupling == "elementwise"


def test_apply_updates_rounds_once():
    params = {"w": torch.ones(2, dtype=torch.bfloat16), "n": None}
    step = {"w": torch.full((2,), 2.0**-8 + 2.0**-20), "n": None}  # float32: more than half a unit of bfloat16 at 1
    moved = fo.apply_updates(params, step)
    assert moved["w"].dtype == torch.bfloat16
    assert moved["w"].tolist() == [1 + 2.0**-7] * 2
    assert moved["n"] is None


def test_apply_updates_shares_nothing():
    params, updates = draw(1), draw(2)
    updates["a"]["bias"] = None
    before = tree.clone((params, updates))
    for leaf in tree.leaves(fo.apply_updates(params, updates)):
        leaf.fill_(77)
    assert_identical((params, updates), before)


def test_apply_updates_keeps_a_leaf_without_update():
    params = {"w": torch.ones(2)}
    moved = fo.apply_updates(params, {"w": None})
    assert moved["w"].tolist() == [1, 1]
    assert moved["w"] is not params["w"]


def test_incremental_update():
    new, old = {"w": torch.full((2,), 3.0)}, {"w": torch.ones(2, dtype=torch.float16)}
    average = fo.incremental_update(new, old, 0.25)
    assert average["w"].tolist() == [1.5, 1.5]
    assert average["w"].dtype == torch.float16
    steps = torch.tensor([0.0, 1.0])
    batched = vmap(lambda step: fo.incremental_update(new, old, step))(steps)
    assert batched["w"][:, 0].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_periodic_update(as_tensor):
    new, old = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    steps = range(7)
    taken = [
        fo.periodic_update(new, old, torch.tensor(step) if as_tensor else step, 3)["w"][0].item() for step in steps
    ]
    assert taken == [1, 0, 0, 1, 0, 0, 1]


def test_a_mask_must_be_of_bools_and_fit():
    params = {"a": torch.ones(1), "b": torch.ones(1)}
    for mask, error, message in (
        ({"a": 1.0, "b": True}, TypeError, "a mask is a tree of bools, got 1.0 at 'a'"),
        ({"a": True}, ValueError, "'b' is not expected"),
        ({"a": True, "b": True, "c": True}, ValueError, "'c' is missing"),
        ({"a": None, "b": True}, TypeError, "got None at 'a'"),
    ):
        decay = fo.add_decayed_weights(0.1, mask)
        with pytest.raises(error, match=message):
            decay.update(params, decay.init(params), params)


def test_a_schedule_is_evaluated_at_zero_first():
    seen = []

    def schedule(count):
        seen.append(int(count))
        return 0.1

    run(fo.adamw(schedule, weight_decay=schedule), draw(1), 3)
    assert seen == [0, 0, 0, 1, 1, 2, 2]  # init notes the first learning rate


@pytest.mark.parametrize("rate", [1e-3, lambda count: torch.tensor(1e-3)])
def test_a_rate_is_not_rounded_to_bfloat16(rate):
    """1e-3 in bfloat16 is 9.9945e-4; times 292 the two differ by one rounding."""
    transformation = fo.scale_by_learning_rate(rate)
    updates = {"w": torch.full((1,), 292.0, dtype=torch.bfloat16)}
    result, _ = transformation.update(updates, transformation.init(updates))
    exact = torch.tensor(-0.292, dtype=torch.bfloat16)
    assert exact != torch.tensor(-292.0 * torch.tensor(1e-3, dtype=torch.bfloat16).item(), dtype=torch.bfloat16)
    assert result["w"].item() == exact.item()


def test_stateless_functions_see_params_or_none():
    given = []
    transformation = fo.stateless(lambda updates, params: given.append(params) or updates)
    params = draw(1)
    transformation.update(draw(2), transformation.init(params))
    transformation.update(draw(2), transformation.init(params), params)
    assert given[0] is None
    assert given[1] is params
    decayed = fo.stateless_with_tree_map(lambda update, param: update if param is None else update + param)
    assert_close(decayed.update(draw(2), fo.EmptyState(), params)[0], tree.map(torch.add, draw(2), params), rtol=1e-15)
    assert_close(decayed.update(draw(2), fo.EmptyState())[0], draw(2), rtol=1e-15)
