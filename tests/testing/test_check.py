"""`check` and `given_optimizer`: what they tell, what they shrink to, what they accept."""

import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import strategies as st

import funcopt as fo
from funcopt import tree
from funcopt.testing import Declared, LawViolation, check, check_schedule, fixed_case, given_optimizer, violations
from funcopt.testing.comparison import require_close, ulp_distance
from funcopt.testing.derivatives import derivative_in_gradients
from funcopt.testing.laws import EAGER, TRANSFORMED
from funcopt.testing.modes import vmap_over_models
from funcopt.testing.structure import absent_gradient, absent_parameter, half_precision
from funcopt.testing.symmetry import bounded, gradient_scale, sign_flip


@fo.factory
def one_sided_clip(bound=1.0):
    return fo.stateless_with_tree_map(lambda g, p: torch.where(g > bound, bound, g), "elementwise")


def test_a_violation_tells_law_place_step_values_distance_transformation_and_the_smallest_case():
    with pytest.raises(LawViolation) as caught:
        check(one_sided_clip(0.5), [sign_flip])
    told = str(caught.value)
    assert told.startswith("sign_flip: Negated gradients and params give negated updates.\n")
    assert "step 0: updates" in told or "step 1: updates" in told
    assert "ulp of" in told and "expected" in told
    assert "by one_sided_clip(0.5)" in told
    assert "in the smallest case found\n    params = " in told and "gradients = [" in told
    assert told.endswith("Declared(odd=False)")
    assert caught.value.law == "sign_flip" and caught.value.smallest


def test_the_smallest_case_is_small_and_its_script_runs():
    (violation,) = violations(one_sided_clip(0.5), [sign_flip], max_examples=100)
    params, gradients = violation.case
    assert len(tree.leaves(params)) == 1 and tree.leaves(params)[0].numel() <= 1
    assert "torch.tensor" in violation.reproducer() or "torch.zeros" in violation.reproducer()
    with pytest.raises(LawViolation):
        sign_flip(violation.transformation, params, gradients)


def test_the_same_draws_at_every_call():
    first, second = (str(next(violations(one_sided_clip(0.5), [sign_flip]))) for _ in range(2))
    assert first == second
    assert str(next(violations(one_sided_clip(0.5), [sign_flip], seed=3)))


def test_a_law_is_a_function():
    params, gradients = fixed_case()
    sign_flip(fo.adam(0.1), params, gradients)
    bounded(fo.clip(0.5), params, gradients, declared=Declared(bounded=0.5))
    with pytest.raises(LawViolation, match=r"bounded: No number .*\n.* > 0\.4"):
        bounded(fo.clip(0.5), params, gradients, declared=Declared(bounded=0.4))


def test_a_failure_of_the_transformation_is_told_with_the_law():
    needy = fo.stateless(lambda updates, params: 1 / 0)
    with pytest.raises(LawViolation, match=r"state_of_tensors: .*\n  ZeroDivisionError: division by zero") as caught:
        check(needy)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_extra_arguments_are_passed():
    def update(updates, state, params=None, *, value, **extra):
        return tree.map_rule(lambda g: value * g, updates), state

    needy = fo.GradientTransformation(fo.identity().init, update)
    with pytest.raises(LawViolation, match="value"):
        check(needy, EAGER[:1])
    check(needy, EAGER, Declared(extra={"value": 0.5}), max_examples=3)


def test_cases_may_be_given():
    seen = []

    def record(updates, params):
        seen.append(updates)
        return tree.clone(updates)

    case = {"w": torch.tensor([1.0, -2.0])}, [{"w": torch.tensor([3.0, 4.0])}]
    check(fo.stateless(record, "elementwise"), EAGER[:1], cases=[case])
    assert torch.equal(seen[0]["w"], case[1][0]["w"])
    check(fo.stateless(record, "elementwise"), EAGER[:1], cases=st.just(case), max_examples=2)
    check(fo.adam(0.1), EAGER[:3], params={"w": torch.ones(2)})


def test_every_law_holds_on_drawn_cases():
    for tx in (fo.adam(0.1), fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(0.1, 0.9))):
        check(tx, EAGER, max_examples=10)


def sgd_with_a_python_count(rate=0.1):
    def update(updates, state, params=None, **extra):
        step = state["step"] + 1
        return tree.map_rule(lambda g: -rate / step * g, updates), {"step": step}

    return fo.GradientTransformation(lambda params: {"step": 0}, update, "elementwise")


def test_a_number_in_the_state_is_told_with_its_remedy_by_every_law_that_fails():
    found = list(violations(sgd_with_a_python_count, TRANSFORMED[:-2] + EAGER, params=[torch.ones(2)] * 2))
    assert {"state_of_tensors", "checkpoint", "vmap_over_models", "derivative_in_params"} <= {v.law for v in found}
    assert all("is no tensor, but of type int. Use a 0-d tensor: zero_count(params)" in v.problem for v in found)


def test_a_bare_tensor_has_no_path():
    one = torch.tensor(1.0)
    with pytest.raises(LawViolation, match=r"^  updates: 1\.0, expected 2\.0, "):
        require_close(one, 2 * one, "updates")
    with pytest.raises(LawViolation, match=r"^  updates at 'w': "):
        require_close({"w": one}, {"w": 2 * one}, "updates")


@pytest.mark.parametrize("law, bound", [(derivative_in_gradients, 1.5), (vmap_over_models, 4.0)])
def test_laws_of_modes_fail_by_the_numbers_of_a_case_and_shrink_them(law, bound):
    """Wrong beyond a bound alone: a derivative that is lost there, or a number that depends on the mode."""

    def spoilt(g):
        return (g * 1).detach() if law is derivative_in_gradients else g + torch._C._functorch.maybe_get_level(g)

    def update(updates, state, params=None, **extra):
        return tree.map_rule(lambda g: torch.where(g.abs() > bound, spoilt(g), g * 1), updates), state

    tx = fo.GradientTransformation(fo.identity().init, update, "elementwise")
    (violation,) = violations(tx, [law], max_examples=120)
    numbers = torch.cat([leaf.flatten() for leaf in tree.leaves(violation.case[1])])
    assert 0 < int((numbers != 0).sum()) <= 2
    check(fo.identity(), [law], max_examples=20)


def test_a_script_names_what_it_cannot_import():
    made = fo.stateless(lambda updates, params: 1 / 0)
    (violation,) = violations(made, EAGER[:1], params={"w": torch.ones(2)})
    script = violation.reproducer()
    assert "# define here: lambda_of_line_" in script and f", of {__name__}" in script
    unknown = fo.GradientTransformation(made.init, made.update)
    (violation,) = violations(unknown, EAGER[:1], params={"w": torch.ones(2)})
    assert "# define here: unknown_transformation, which no funcopt.factory has made" in violation.reproducer()


def test_a_leaf_is_not_taken_for_another_whose_path_ends_its_own():
    params = [torch.zeros(2), torch.zeros(()), [torch.zeros(2)]]
    check(fo.adam(0.1), [absent_gradient, absent_parameter], params=params)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_law_holds_on_many_drawn_cases(seed):
    for tx in (fo.adam(0.1), fo.rmsprop(0.1), fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(0.1, 0.9))):
        check(tx, max_examples=100, seed=seed)


def test_hyperparameters_of_a_plain_factory_are_those_of_its_signature():
    def my_sgd(rate=0.1):
        number = rate.item() if isinstance(rate, torch.Tensor) else rate
        return fo.stateless_with_tree_map(lambda g, p: -number * g, "elementwise")

    found = {violation.law for violation in violations(my_sgd, TRANSFORMED[:-2], params={"w": torch.ones(2)})}
    assert found == {"vmap_over_hyperparameters", "derivative_in_hyperparameters"}
    assert not list(violations(functools.partial(fo.sgd, 0.1), TRANSFORMED[:-2], params={"w": torch.ones(2)}))


@pytest.mark.parametrize("wrong", [3, lambda: 3, "adam"])
def test_what_makes_no_transformation_is_refused(wrong):
    with pytest.raises(TypeError, match="expected a GradientTransformation, or a function"):
        check(wrong)


def test_given_optimizer():
    seen = []

    @given_optimizer(fo.sgd(0.1), fo.adam, st.just(fo.identity()), max_examples=30)
    def moves(tx, params, gradients):
        seen.append((repr(tx), len(gradients)))
        state = tx.init(params)
        tx.update(gradients[0], state, params)

    moves()
    assert moves.__name__ == "moves"
    assert any(name.startswith("adam(") for name, _ in seen) and ("identity()") in {name for name, _ in seen}

    @given_optimizer(fo.adam, max_examples=20)
    def wrong(tx, gradients):
        assert not tree.leaves(gradients)

    with pytest.raises(AssertionError):
        wrong()


def test_given_optimizer_refuses():
    with pytest.raises(TypeError, match="at least one"):
        given_optimizer()
    with pytest.raises(TypeError, match="unknown"):

        @given_optimizer(fo.sgd(0.1))
        def test(tx, unknown):
            pass


@pytest.mark.parametrize(
    "a, b, dtype, expected",
    [
        (1.0, 1.0 + 2**-52, torch.float64, 1),
        (1.0, 1.0 + 2**-23, torch.float32, 1),
        (1.0, 1.0 + 2**-7, torch.bfloat16, 1),
        (1.0, 1.0 + 2**-10, torch.float16, 1),
        (0.0, -0.0, torch.float32, 0),
        (-(2.0**-149), 2.0**-149, torch.float32, 2),
        (1.0, 2.0, torch.bfloat16, 128),
        (float("nan"), 1.0, torch.float32, None),
    ],
)
def test_ulp_distance(a, b, dtype, expected):
    assert ulp_distance(a, b, dtype) == ulp_distance(b, a, dtype) == expected


def test_comparisons_see_what_is_not_finite():
    nan, one = {"w": torch.tensor([float("nan")])}, {"w": torch.tensor([1.0])}
    require_close(nan, nan, "x")
    for pair in ((nan, one), (one, nan), (one, {"w": torch.tensor([float("inf")])}), (one, {"v": one["w"]})):
        with pytest.raises(LawViolation, match="x"):
            require_close(*pair, "x")


def test_declarations_switch_laws_on():
    found = list(violations(fo.adam(0.1), [gradient_scale, bounded], Declared(scale="invariant"), *fixed_case()))
    assert [violation.law for violation in found] == ["gradient_scale"]  # ε = 1e-8 is seen at gradients of 1e-4
    assert not list(violations(fo.adam(0.1), [gradient_scale, bounded], Declared(), *fixed_case()))


def test_low_precision_on_purpose():
    stored = fo.adam(0.1, mu_dtype=torch.bfloat16)
    with pytest.raises(LawViolation, match="the state at"):
        check(stored, [half_precision], None, *fixed_case())
    check(stored, [half_precision], Declared(stored_in=torch.bfloat16), *fixed_case())


def test_schedules():
    check_schedule(fo.cosine_decay_schedule(0.1, 20), monotone="decreasing", between=(0.0, 0.1))
    check_schedule(fo.linear_schedule(0.0, 1.0, 5), monotone="increasing")
    with pytest.raises(LawViolation, match=r"monotone_values: .*\n  from 0 to 1: .* is not decreasing"):
        check_schedule(fo.warmup_cosine_decay_schedule(0.0, 1.0, 3, 8), monotone="decreasing")
    with pytest.raises(LawViolation, match=r"values_between: .*\n  at 0: 1\.0 lies outside"):
        check_schedule(fo.constant_schedule(1.0), between=(0.0, 0.5))


WRONG_SCHEDULES = {
    "monotone_values": lambda count: 0.5 * (1 + torch.cos(torch.as_tensor(count, dtype=torch.float64) / 20 * torch.pi)),
    "finite_values": lambda count: 1 / torch.as_tensor(count, dtype=torch.float64),
    "counts_of_any_dtype": lambda count: torch.as_tensor(0.1 * count if isinstance(count, int) else 0.2 * count),
    "vmap_over_counts": lambda count: torch.tensor(1.0 if count < 10 else 0.5, dtype=torch.float64),
}


@pytest.mark.parametrize("law", WRONG_SCHEDULES)
def test_wrong_schedules(law):
    """A cosine that rises again behind its end; a division by the count; two meanings of a count; a Python branch."""
    with pytest.raises(LawViolation) as caught:
        check_schedule(WRONG_SCHEDULES[law], monotone="decreasing" if law == "monotone_values" else None)
    assert caught.value.law == law


def test_a_schedule_with_a_memory():
    calls = []

    def schedule(count):
        calls.append(count)
        return torch.tensor(1.0 / (1 + len(calls) // 400), dtype=torch.float64)

    with pytest.raises(LawViolation):
        check_schedule(schedule, counts=range(200))


def test_the_library_does_not_import_hypothesis():
    code = "import sys, funcopt; assert 'hypothesis' not in sys.modules and 'funcopt.testing' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
