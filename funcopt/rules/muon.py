"""Muon: momentum whose matrices are made orthogonal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from funcopt import numerics, tree
from funcopt.checks import check_choice, check_within
from funcopt.linalg.newton_schulz import (
    STANDARD,
    Coefficients,
    Preconditioning,
    check_coefficients,
    newton_schulz,
)
from funcopt.numerics import EpsMode, ema, increment
from funcopt.rules.adam import adamw
from funcopt.transform import (
    GradientTransformation,
    Mask,
    Params,
    ScalarOrSchedule,
    Updates,
    chain,
    factory,
    stateless,
    zero_count,
)
from funcopt.transforms.scaling import scale_by_learning_rate
from funcopt.transforms.weight_decay import add_decayed_weights
from funcopt.wrappers.partition import partition
from funcopt.wrappers.patterns import per_leaf

Layout: TypeAlias = Literal["out_in", "in_out"]
"""What the axes of a matrix are: outputs and inputs, as in torch.nn.Linear, or the other way round, as in JAX."""


@dataclass(frozen=True)
class MuonDimensionNumbers:
    """Which axes of a leaf are the inputs ("reduction") and the outputs of a matrix; all others are a batch.

    >>> convolution = MuonDimensionNumbers(reduction_axis=(1, 2, 3), output_axis=0)
    """

    reduction_axis: int | Sequence[int] = 0
    output_axis: int | Sequence[int] = 1


DimensionNumbers: TypeAlias = tree.Tree | Callable[[Params], tree.Tree]
"""`MuonDimensionNumbers` for all leaves, a tree of them or a prefix of it, a function of params, or patterns."""
_LAYOUTS = {"out_in": MuonDimensionNumbers(1, 0), "in_out": MuonDimensionNumbers(0, 1)}


class _Axes(NamedTuple):
    """The axes of a leaf, each group in the order in which it is flattened."""

    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _axes(leaf: Tensor, spec: MuonDimensionNumbers) -> _Axes:
    def positive(axes: int | Sequence[int]) -> tuple[int, ...]:
        return tuple(axis % leaf.ndim for axis in ([axes] if isinstance(axes, int) else axes))

    inputs, outputs = positive(spec.reduction_axis), positive(spec.output_axis)
    return _Axes(tuple(axis for axis in range(leaf.ndim) if axis not in inputs + outputs), inputs, outputs)


def _as_matrices(leaf: Tensor, axes: _Axes) -> Tensor:
    sizes = [math.prod([leaf.shape[axis] for axis in group]) for group in axes]
    return leaf.permute(sum(axes, ())).reshape(sizes if axes.batch else sizes[1:])


def _from_matrices(matrices: Tensor, axes: _Axes, shape: torch.Size) -> Tensor:
    order = sum(axes, ())
    return matrices.reshape([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(shape))])


def _spec_reader(
    name: str, given: DimensionNumbers | None, layout: Layout
) -> Callable[[Params | None, Updates], tree.Tree]:
    """How a factory reads its dimension numbers: a function of params and updates that makes a tree of them."""
    check_choice(name, ("out_in", "in_out"), layout=layout)

    def check(what: str, value: Any) -> None:
        if not isinstance(value, MuonDimensionNumbers):
            raise TypeError(f"{name}: dimension numbers must be MuonDimensionNumbers, got {value!r} for {what}.")

    read = per_leaf(name, "weight_dimension_numbers", _LAYOUTS[layout] if given is None else given, check)

    def specs_of(params: Params | None, updates: Updates) -> tree.Tree:
        model = updates if params is None else params
        specs = read(params, updates)
        paths = [path for path, _ in tree.leaves_with_path(model)]
        for path, leaf, spec in zip(paths, tree.one_of_each(model), specs):
            if leaf is not None:
                _check_spec(name, path, leaf, spec, explicit=given is not None)
        return tree.unflatten(specs, tree.flatten(model)[1])

    return specs_of


def _check_spec(name: str, path: str, leaf: Tensor, spec: MuonDimensionNumbers, explicit: bool) -> None:
    if leaf.ndim < 2 or (leaf.ndim > 2 and not explicit):
        raise ValueError(
            f"{name}: the leaf {path!r} must be a matrix, got shape {tuple(leaf.shape)}. Give "
            "weight_dimension_numbers for leaves of more axes, and vectors to another optimizer, as muon does."
        )
    axes = _axes(leaf, spec)
    if len(set(axes.inputs + axes.outputs)) < len(axes.inputs + axes.outputs):
        raise ValueError(f"{name}: the axes of {spec} must differ in the leaf {path!r} of shape {tuple(leaf.shape)}.")


class MuonState(NamedTuple):
    count: Tensor  # type: ignore[assignment]  # steps taken
    mu: tree.Tree  # running mean of g


@factory
def scale_by_muon(
    ns_coeffs: Coefficients | Sequence[Coefficients] | str = STANDARD,
    ns_steps: int = 5,
    beta: float | Tensor = 0.95,
    eps: float | Tensor = 1e-8,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    weight_dimension_numbers: DimensionNumbers | None = None,
    ns_dtype: torch.dtype | None = None,
    eps_mode: EpsMode = "add",
    bias_correction: bool = True,
) -> GradientTransformation:
    """Replace the gradients of matrices by the orthogonal direction of `muon`.

        μ ← β μ + (1 - β) g,    m = β μ / (1 - βᵗ⁺¹) + (1 - β) g / (1 - βᵗ), without `nesterov` μ / (1 - βᵗ)
        u = O(m), see `newton_schulz`; with `adaptive` ⟨m, u⟩ u

    torch.optim.Muon has no `bias_correction` (m = β μ + (1 - β) g), iterates in bfloat16 (`ns_dtype`), where the leaf's
    dtype is otherwise used, at least float32, and bounds the norm by ε ("floor" as `eps_mode`). Leaves that are no
    matrices need `weight_dimension_numbers`: those of `MuonDimensionNumbers` for all leaves, as a tree, a function of
    params, or patterns.

    As optax.contrib.scale_by_muon, where coefficients are in the state, and, for each step, must not be more than the
    steps (here the first ones count).
    """
    name = "scale_by_muon"
    check_within(name, "[0, 1)", beta=beta)
    check_within(name, "[0, inf)", eps=eps)
    triples = check_coefficients(name, ns_coeffs, ns_steps)
    specs_of = _spec_reader(name, weight_dimension_numbers, "in_out")  # either way alike; this one transposes nothing

    def orthogonal(m: Tensor, axes: _Axes) -> Tensor:
        matrices = newton_schulz(
            _as_matrices(m, axes), triples, ns_steps, eps, ns_dtype, preconditioning=preconditioning, eps_mode=eps_mode
        )
        u = _from_matrices(matrices, axes, m.shape)
        return (m.conj() * u).sum() * u if adaptive else u

    def init(params: Params) -> MuonState:
        count = zero_count(params)
        specs_of(params, params)  # what does not fit is told before the first step
        return MuonState(count, tree.zeros_like(params, mu_dtype))

    def update(
        updates: Updates, state: MuonState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MuonState]:
        count = increment(state.count)
        c1 = numerics.bias_correction(beta, count) if bias_correction else 1.0
        c1_next = numerics.bias_correction(beta, increment(count)) if bias_correction else 1.0

        def rule(g: Tensor, mu: Tensor, spec: MuonDimensionNumbers) -> tuple[Tensor, Tensor]:
            mu = ema(mu, g, beta)
            m = beta * mu / c1_next + (1 - beta) * g / c1 if nesterov else mu / c1
            return orthogonal(m, _axes(g, spec)), mu

        updates, mu = tree.map_rule(rule, updates, state.mu, reads=(specs_of(params, updates),))
        return updates, MuonState(count, mu)

    return GradientTransformation(init, update, "leafwise")


@factory
def scale_by_shape(
    weight_dimension_numbers: DimensionNumbers | None = None,
    consistent_rms: float | Tensor | None = None,
    *,
    layout: Layout = "out_in",
) -> GradientTransformation:
    """Scale the updates of matrices by what their shape asks for: the last factor of `muon`.

        u = √max(1, out / in) g        or, with `consistent_rms` = r, u = r √max(out, in) g

    Of orthogonal matrices, the first gives updates that change outputs alike whatever the width (Jordan 2024), the
    second a root mean square of r (Liu et al. 2025, https://arxiv.org/abs/2502.16982; 0.2 is that of AdamW). `layout`
    says which axis of a matrix is which: "out_in" as in torch.nn.Linear and torch.optim.Muon, "in_out" as in optax,
    whose default it is. Leaves of more axes need `weight_dimension_numbers`, see `scale_by_muon`.
    """
    check_within("scale_by_shape", "[0, inf)", consistent_rms=consistent_rms)
    specs_of = _spec_reader("scale_by_shape", weight_dimension_numbers, layout)

    def rule(g: Tensor, spec: MuonDimensionNumbers) -> Tensor:
        fan_in, fan_out = (math.prod([g.shape[axis] for axis in group]) for group in _axes(g, spec)[1:])
        if consistent_rms is None:
            return g * math.sqrt(max(1.0, fan_out / max(fan_in, 1)))
        return g * (consistent_rms * math.sqrt(max(fan_in, fan_out)))

    def rescale(updates: Updates, params: Params | None) -> Updates:
        return tree.map_rule(rule, updates, reads=(specs_of(params, updates),))

    return stateless(rescale, "leafwise")


@factory
def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Coefficients | Sequence[Coefficients] | str = STANDARD,
    ns_steps: int = 5,
    beta: float | Tensor = 0.95,
    eps: float | Tensor = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: float | Tensor = 0.9,
    adam_b2: float | Tensor = 0.999,
    adam_eps_root: float | Tensor = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: DimensionNumbers | None = None,
    consistent_rms: float | Tensor | None = None,
    layout: Layout = "out_in",
    ns_dtype: torch.dtype | None = None,
    eps_mode: EpsMode = "add",
    bias_correction: bool = True,
) -> GradientTransformation:
    """Muon for matrices, NAdamW for all other leaves (Jordan 2024, https://kellerjordan.github.io/posts/muon/).

        μ ← β μ + (1 - β) g        m: μ, corrected and with Nesterov's step, see `scale_by_muon`
        u = -α (√max(1, out / in) O(m) + λ p)        O(m) is m with all singular values near 1

    A leaf is a matrix if it has two axes, or `muon_weight_dimension_numbers` tells its axes (a tree, or a function of
    params; None there leaves a leaf to NAdamW). Give embeddings and heads to another optimizer by `partition`: shapes
    do not tell them. `nesterov`, `eps` and `mu_dtype` are those of both; the other leaves take the rate
    `adam_learning_rate`, or `learning_rate` where it is None.

    As optax.contrib.muon, but that there the layout is "in_out", see `scale_by_shape`. torch.optim.Muon(lr=α) is
    `muon(α, eps=1e-7, weight_decay=0.1, ns_dtype=torch.bfloat16, eps_mode="floor", bias_correction=False)`, for
    matrices only, and its `adjust_lr_fn="match_rms_adamw"` is `consistent_rms=0.2`.

    >>> optimizer = muon(learning_rate=0.02, weight_decay=0.01)
    """
    for_matrices = chain(
        scale_by_muon(
            ns_coeffs,
            ns_steps,
            beta,
            eps,
            mu_dtype,
            nesterov=nesterov,
            adaptive=adaptive,
            preconditioning=preconditioning,
            weight_dimension_numbers=muon_weight_dimension_numbers,
            ns_dtype=ns_dtype,
            eps_mode=eps_mode,
            bias_correction=bias_correction,
        ),
        scale_by_shape(muon_weight_dimension_numbers, consistent_rms, layout=layout),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    for_others = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        nesterov=nesterov,
    )
    return partition({"muon": for_matrices, "adam": for_others}, _labels(muon_weight_dimension_numbers))


def _labels(given: DimensionNumbers | None) -> Callable[[Params], tree.Tree]:
    def labels(params: Params) -> tree.Tree:
        if given is None:
            return tree.map(lambda leaf: "muon" if leaf.ndim == 2 else "adam", params)
        specs = tree.broadcast_prefix(given(params) if callable(given) else given, params)
        leaves, structure = tree.flatten(params)
        chosen = [leaf if leaf is None else "adam" if spec is None else "muon" for leaf, spec in zip(leaves, specs)]
        return tree.unflatten(chosen, structure)

    return labels
