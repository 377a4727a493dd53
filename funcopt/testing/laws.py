"""All laws, in the order in which `check` tries them: the cheap ones, and those that explain others, first."""

from funcopt.testing.agreement import accumulation, adapter, float32_accuracy, reference
from funcopt.testing.derivatives import (
    derivative_in_gradients,
    derivative_in_hyperparameters,
    derivative_in_params,
    derivatives_finite_at_zero,
)
from funcopt.testing.law import Law
from funcopt.testing.leaves import (
    leaves_are_independent,
    names_mean_nothing,
    numbers_are_independent,
    order_of_keys,
    packed,
)
from funcopt.testing.modes import (
    compiled,
    compiled_hyperparameters,
    tensors_mean_numbers,
    vmap_over_hyperparameters,
    vmap_over_models,
)
from funcopt.testing.purity import (
    arguments_are_kept,
    checkpoint,
    determinism,
    no_hidden_state,
    nothing_is_shared,
    surroundings,
)
from funcopt.testing.structure import (
    absent_gradient,
    absent_parameter,
    complex_phase,
    empty_trees,
    half_precision,
    params_or_none,
    state_of_tensors,
    structure_is_kept,
)
from funcopt.testing.symmetry import (
    absorption,
    bounded,
    descent,
    direction,
    gradient_scale,
    idempotence,
    linearity,
    magnitude,
    norm_bounded,
    orthogonal_equivariance,
    sign_flip,
    zero_gradients,
)

EAGER: tuple[Law, ...] = (
    state_of_tensors,
    arguments_are_kept,
    determinism,
    surroundings,
    no_hidden_state,
    structure_is_kept,
    nothing_is_shared,
    checkpoint,
    absent_gradient,
    absent_parameter,
    empty_trees,
    params_or_none,
    leaves_are_independent,
    numbers_are_independent,
    names_mean_nothing,
    order_of_keys,
    packed,
    zero_gradients,
    sign_flip,
    descent,
    gradient_scale,
    linearity,
    orthogonal_equivariance,
    bounded,
    norm_bounded,
    magnitude,
    direction,
    idempotence,
    absorption,
    complex_phase,
    reference,
    accumulation,
    float32_accuracy,
    half_precision,
)
"""The laws that only call init and update."""
TRANSFORMED: tuple[Law, ...] = (
    tensors_mean_numbers,
    vmap_over_models,
    vmap_over_hyperparameters,
    derivatives_finite_at_zero,
    derivative_in_gradients,
    derivative_in_params,
    derivative_in_hyperparameters,
    adapter,
    compiled,
    compiled_hyperparameters,
)
"""The laws that vmap, differentiate or compile, or run it behind the interface of torch.optim."""
LAWS: tuple[Law, ...] = (*EAGER, *TRANSFORMED)
