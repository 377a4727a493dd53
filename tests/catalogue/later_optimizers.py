"""Optimizers with steps for each number, averages, factors and matrices, and their transformations."""

from typing import Any

import jax
import optax
import torch
from optax.contrib import _muon

import funcopt as fo
from funcopt import tree
from tests.catalogue.entry import Entry, decaying, no_counterpart, only_matrices


def repaired_scale_by_rprop(**case: float) -> optax.GradientTransformation:
    """optax's rule, with the update of this step, which it keeps for the next."""
    rule = optax.scale_by_rprop(**case)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        _, state = rule.update(updates, state, params)
        return state.prev_updates, state

    return optax.GradientTransformation(rule.init, update)


def repaired_rprop(**case: float) -> optax.GradientTransformation:
    return optax.chain(repaired_scale_by_rprop(**case), optax.scale(-1.0))


def exact_decay(count: Any, exponent: float) -> Any:
    """optax rounds it to float32."""
    return 1.0 - (1.0 + count) ** -exponent


def optax_factored_rms(**case: Any) -> Any:
    if "eps_mode" in case or "factored_dims" in case:
        return None
    return optax.scale_by_factored_rms(**case, decay_rate_fn=exact_decay)


def optax_adafactor(learning_rate: Any = None, **case: Any) -> Any:
    """The chain of optax.adafactor, with an exact decay."""
    if "eps_mode" in case:
        return None
    threshold, mask = case.get("clipping_threshold", 1.0), jax_matrices if "weight_decay_mask" in case else None
    rms = {"min_dim_size_to_factor": case.get("min_dim_size_to_factor", 128), "epsilon": case.get("eps", 1e-30)}
    links = [
        optax.scale_by_factored_rms(decay_rate=case.get("decay_rate", 0.8), decay_rate_fn=exact_decay, **rms),
        optax.identity() if threshold is None else optax.clip_by_block_rms(threshold),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        optax.scale_by_param_block_rms() if case.get("multiply_by_parameter_scale", True) else optax.identity(),
    ]
    if "momentum" in case:
        links.append(optax.ema(case["momentum"], debias=False))
    if "weight_decay_rate" in case:
        links.append(optax.add_decayed_weights(case["weight_decay_rate"], mask))
    return optax.chain(*links, optax.scale(-1.0))


def matrices(params: Any) -> Any:
    return tree.map(lambda leaf: leaf.ndim == 2, params)


def convolutions(params: Any) -> Any:
    """Dimension numbers for leaves of two axes, (out, in), and three, (in, batch, out); None for others."""
    specs = {2: fo.MuonDimensionNumbers(1, 0), 3: fo.MuonDimensionNumbers(0, 2)}
    return tree.map(lambda leaf: specs.get(leaf.ndim), params)


def optax_specs(case: dict[str, Any]) -> Any:
    """The same for optax, which divides by the size of an empty leaf."""
    in_out = case.get("layout") == "in_out"
    specs = {2: _muon.MuonDimensionNumbers(0, 1) if in_out else _muon.MuonDimensionNumbers(1, 0)}
    if "muon_weight_dimension_numbers" in case:
        specs[3] = _muon.MuonDimensionNumbers(0, 2)
    return lambda params: jax.tree.map(lambda leaf: specs.get(leaf.ndim) if leaf.size else None, params)


def optax_muon(**case: Any) -> Any:
    if "ns_dtype" in case or "bias_correction" in case:
        return None
    arguments = {name: value for name, value in case.items() if name != "layout"}
    if "weight_decay_mask" in case:
        arguments["weight_decay_mask"] = jax_matrices
    arguments["muon_weight_dimension_numbers"] = optax_specs(case)
    return optax.contrib.muon(**arguments)


def scale_by_muon(beta: float = 0.95, eps: float = 1e-8, **case: Any) -> fo.GradientTransformation:
    return fo.masked(fo.scale_by_muon(beta=beta, eps=eps, **case), matrices)


def optax_scale_by_muon(**case: Any) -> Any:
    if "bias_correction" in case:
        return None
    specs = lambda params: jax.tree.map(lambda leaf: _muon.MuonDimensionNumbers(), params)  # noqa: E731
    return optax.masked(optax.contrib.scale_by_muon(**case, weight_dimension_numbers=specs), two_axes)


def scale_by_shape(layout: str = "out_in", consistent_rms: float | None = None) -> fo.GradientTransformation:
    return fo.masked(fo.scale_by_shape(None, consistent_rms, layout=layout), matrices)


def optax_scale_by_shape(layout: str = "out_in", consistent_rms: float | None = None) -> Any:
    axes = _muon.MuonDimensionNumbers(0, 1) if layout == "in_out" else _muon.MuonDimensionNumbers(1, 0)
    specs = lambda params: jax.tree.map(lambda leaf: axes, params)  # noqa: E731
    return optax.masked(_muon.scale_by_shape(specs, consistent_rms), two_axes)


def two_axes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim == 2 and leaf.size > 0, params)


def jax_matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


RPROP_SCALARS = ("learning_rate", "eta_minus", "eta_plus", "min_step_size", "max_step_size")
RPROP = (
    {"learning_rate": 0.05, "eta_plus": 3.0},  # so that the part of it that laws take is above 1
    {"learning_rate": 0.05, "eta_minus": 0.3, "eta_plus": 4.0, "min_step_size": 0.01, "max_step_size": 0.4},
)
CLIPPED = {"min_dim_size_to_factor": 2, "clipping_threshold": 0.8}  # at 1, the first step of vectors is a tie
TORCH_ADAFACTOR = {"factored_dims": "last", "eps_mode": "floor"}
MUON_SCALARS = ("beta", "eps")

LATER_OPTIMIZERS: tuple[Entry, ...] = (
    Entry("rprop", RPROP, RPROP_SCALARS, optax=repaired_rprop, complex=False),
    Entry(
        "asgd",
        ({"learning_rate": 0.05, "t0": 1.7}, {"learning_rate": decaying, "lambd": 0.3, "alpha": 0.6, "t0": -0.5}),
        scalars=("learning_rate", "lambd", "alpha", "t0"),
        optax=no_counterpart,
    ),
    Entry(
        "adafactor",
        heavy=True,
        cases=(
            {"learning_rate": 0.05, "clipping_threshold": 0.8},
            {"learning_rate": decaying, **CLIPPED, "momentum": 0.7, "eps": 1e-3},
            {"learning_rate": 0.05, "clipping_threshold": None, "decay_rate": 0.6, "weight_decay_rate": 0.01},
            {"learning_rate": 0.05, **CLIPPED, "weight_decay_rate": decaying, "weight_decay_mask": only_matrices},
            {"learning_rate": 0.05, **CLIPPED, "multiply_by_parameter_scale": False},
            {"learning_rate": 0.7, **CLIPPED, "eps": None, "relative_cap": True, **TORCH_ADAFACTOR},
            {"learning_rate": 0.05, **CLIPPED, "eps": 0.3, "min_scale": 1.5, **TORCH_ADAFACTOR},
        ),
        scalars=(
            "learning_rate",
            "decay_rate",
            "clipping_threshold",
            "momentum",
            "weight_decay_rate",
            "eps",
            "min_scale",
        ),
        optax=optax_adafactor,
    ),
    Entry(
        "muon",
        heavy=True,
        cases=(
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "beta": 0.8, "weight_decay": 0.1, "weight_decay_mask": only_matrices},
            {"learning_rate": 0.05, "nesterov": False, "layout": "in_out", "adam_learning_rate": 0.02},
            {"learning_rate": 0.05, "muon_weight_dimension_numbers": convolutions, "consistent_rms": 0.2},
            {"learning_rate": 0.05, "eps": 1e-2, "ns_coeffs": "dion", "preconditioning": "aol", "adaptive": True},
            {"learning_rate": 0.05, "ns_dtype": torch.bfloat16, "eps_mode": "floor", "bias_correction": False},
        ),
        scalars=("learning_rate", *MUON_SCALARS, "weight_decay", "adam_learning_rate", "consistent_rms"),
        optax=optax_muon,
        float32_tolerance=1e-4,  # small singular values grow by a factor of 500, with their rounding
    ),
)

THEIR_TRANSFORMATIONS: tuple[Entry, ...] = (
    Entry("scale_by_rprop", RPROP, RPROP_SCALARS, optax=repaired_scale_by_rprop, complex=False),
    Entry("scale_by_param_block_rms", ({}, {"min_scale": 1.5}), scalars=("min_scale",)),
    Entry(
        "scale_by_factored_rms",
        (
            {"decay_rate": 0.6, "min_dim_size_to_factor": 2, "epsilon": 1e-3},
            {"factored": False, "step_offset": -3, "epsilon": 0.1},
            {"min_dim_size_to_factor": 0, "epsilon": None, **TORCH_ADAFACTOR},
        ),
        scalars=("decay_rate", "epsilon"),
        optax=optax_factored_rms,
    ),
    Entry(
        "scale_by_muon",
        heavy=True,
        cases=(
            {"beta": 0.8, "eps": 1e-2},
            {"nesterov": False, "preconditioning": "schatten", "ns_steps": 3},
            {"bias_correction": False, "eps_mode": "floor"},
        ),
        scalars=MUON_SCALARS,
        build=scale_by_muon,
        optax=optax_scale_by_muon,
        float32_tolerance=1e-4,
    ),
    Entry(
        "scale_by_shape",
        ({}, {"layout": "in_out"}, {"consistent_rms": 0.2}),
        scalars=("consistent_rms",),
        build=scale_by_shape,
        optax=optax_scale_by_shape,
    ),
)

LATER_OPTIMIZERS_ELSEWHERE = {"newton_schulz": "tests/linalg/test_newton_schulz.py"}
