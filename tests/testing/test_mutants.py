"""The kit finds the bugs that libraries had: mutants break laws, every law catches one, and what is right passes."""

import pytest
import torch

from funcopt.testing import LAWS, LawViolation, check, fixed_case, violations
from funcopt.testing.modes import compiled, compiled_hyperparameters
from tests.testing.mutants import MUTANTS, table

pytestmark = pytest.mark.slow  # a minute

CASE = fixed_case()
QUICK = [law for law in LAWS if law not in (compiled, compiled_hyperparameters)]
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}

WITNESSES = {
    "state_of_tensors": "count_as_an_int",
    "arguments_are_kept": "gradient_overwritten",
    "determinism": "noise_from_the_global_generator",
    "surroundings": "power_in_the_default_dtype",
    "no_hidden_state": "initial_parameters_in_the_closure",
    "structure_is_kept": "measurements_from_the_first_step_on",
    "nothing_is_shared": "one_zero_for_all_buffers",
    "checkpoint": "first_call_flag",
    "absent_gradient": "none_counted_as_zero",
    "absent_parameter": "buffers_for_absent_parameters",
    "empty_trees": "columns_of_an_empty_tree",
    "params_or_none": "decay_without_params_is_skipped",
    "leaves_are_independent": "norm_over_all_leaves_declared_leafwise",
    "numbers_are_independent": "mean_of_a_leaf_declared_elementwise",
    "names_mean_nothing": "rule_by_name",
    "order_of_keys": "matched_by_position",
    "packed": "mean_of_a_leaf_declared_elementwise",
    "zero_gradients": "trust_ratio_of_zero_weights",
    "sign_flip": "clip_from_above_only",
    "descent": "uphill_without_a_rate",
    "gradient_scale": "eps_of_zero_is_falsy",
    "linearity": "hidden_clipping",
    "orthogonal_equivariance": "row_norms_for_a_matrix_sign",
    "bounded": "clip_from_above_only",
    "norm_bounded": "clip_of_each_leaf",
    "magnitude": "sign_of_zero_is_one",
    "direction": "clip_of_each_leaf",
    "idempotence": "squared_norm_compared",
    "absorption": "mask_by_multiplication",
    "complex_phase": "square_of_a_complex_gradient",
    "reference": "stale_update",
    "accumulation": "sum_in_place_of_the_mean",
    "float32_accuracy": "correction_in_the_leafs_dtype",
    "half_precision": "square_in_float16",
    "tensors_mean_numbers": "decay_in_float32",
    "vmap_over_models": "counter_without_a_device",
    "vmap_over_hyperparameters": "rate_checked_by_comparison",
    "derivatives_finite_at_zero": "one_where_for_a_root",
    "derivative_in_gradients": "kernel_without_forward_mode",
    "derivative_in_params": "decay_without_gradient",
    "derivative_in_hyperparameters": "rate_without_gradient",
    "adapter": "parameters_kept",
    "compiled": "branch_on_a_value",
    "compiled_hyperparameters": "rate_checked_by_comparison",
}
"""For every law a mutant that it catches; the whole table is printed by `python -m tests.testing.mutants`."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_every_mutant_is_caught(mutant):
    with pytest.raises(LawViolation):
        check(mutant.make, QUICK, mutant.declared, *CASE)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_what_the_mutant_was_meant_to_be_passes(mutant):
    check(mutant.right, QUICK, mutant.declared, *CASE)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_every_law_catches_a_mutant(law):
    mutant = BY_NAME[WITNESSES[law.name]]
    with pytest.raises(LawViolation) as caught:
        check(mutant.make, [law], mutant.declared, *CASE)
    assert caught.value.law == law.name


ADDRESSES = "state_by_identity"  # what breaks depends on where tensors come to lie in memory


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.name != ADDRESSES], ids=str)
def test_the_script_of_a_violation_raises_it_again(mutant):
    found = next(violations(mutant.make, QUICK, mutant.declared, *CASE))
    script = found.reproducer()
    assert "define here" not in script and "<" not in script
    with pytest.raises(LawViolation) as caught:
        exec(script, {})
    assert caught.value.law == found.law


def test_there_are_enough_and_each_tells_its_bug():
    assert len(MUTANTS) >= 40
    assert len(BY_NAME) == len(MUTANTS)
    assert all(len(mutant.bug) > 30 and "\n" not in mutant.bug for mutant in MUTANTS)


def test_the_table():
    lines = table([BY_NAME["rule_by_name"]], QUICK).splitlines()
    assert lines[0] == "| mutant | bug | caught by |"
    assert lines[2].startswith('| rule_by_name | Leaves called "bias"') and "| names_mean_nothing, packed" in lines[2]
