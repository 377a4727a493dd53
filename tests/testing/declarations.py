"""What the entries of the catalogue are declared to be: the laws that apply to each, and its quirks."""

import functools
from typing import Any

import torch

import funcopt as fo
from funcopt import tree
from funcopt.testing.declared import Declared
from tests.catalogue import Entry

DECAYS = {"zero_fixpoint": "at zero"}
NOISE = {"zero_fixpoint": None, "odd": False, "complex": False, "float32_tolerance": None}

QUIRKS: dict[str, dict[str, Any]] = {
    "adamw": DECAYS,
    "nadamw": DECAYS,
    "adamaxw": DECAYS,
    "adadelta": DECAYS,
    "add_decayed_weights": DECAYS,
    "add_noise": NOISE,
    "keep_params_nonnegative": {"zero_fixpoint": None, "odd": False, "idempotent": True},
    "stateless_with_tree_map": {"complex": False},  # a cube turns by three times the phase
    "sgd": {"descends": True, "linear": True, "scale": "equivariant"},
    "adam": {"descends": True},
    "nadam": {"descends": True},
    "amsgrad": {"descends": True},
    "adamax": {"descends": True},
    "dozat_nadam": {"descends": True},
    "radam": {"descends": True},
    "adagrad": {"descends": True},
    "rmsprop": {"descends": True},
    "rprop": {"descends": True},
    "asgd": {**DECAYS, "descends": True},
    "muon": DECAYS,
    "scale": {"linear": True, "orthogonal": True, "scale": "equivariant"},
    "scale_by_learning_rate": {"linear": True, "orthogonal": True, "scale": "equivariant"},
    "scale_by_schedule": {"linear": True, "orthogonal": True, "scale": "equivariant"},
    "scale_by_sign": {"magnitude": 1.0, "scale": "invariant", "idempotent": True},
    "normalize_by_update_norm": {"direction": "tree", "orthogonal": True},
    "centralize": {"linear": True, "idempotent": True, "scale": "equivariant"},
    "trace": {"linear": True, "orthogonal": True, "scale": "equivariant"},
    "ema": {"linear": True, "orthogonal": True, "scale": "equivariant"},
    "clip": {"idempotent": True},
    "clip_by_block_rms": {"direction": "leaf", "idempotent": True, "orthogonal": True},
    "clip_by_global_norm": {"direction": "tree", "idempotent": True, "orthogonal": True},
    "adaptive_grad_clip": {"idempotent": True},
    "zero_nans": {"absorbs": (float("nan"),), "linear": True, "scale": "equivariant", "idempotent": True},
    "inject_hyperparams": DECAYS,  # of adamw, as the next ones
    "sam": {"zero_fixpoint": None, "descends": False},  # its ascent goes on, and its weights decay
    "schedule_free_sgd": DECAYS,
    "schedule_free_adamw": DECAYS,
    "with_metrics": DECAYS,
    "flatten": DECAYS,
    "keep_params_in": {"zero_fixpoint": None},
    "split_real_and_imaginary": {"complex": False},  # its two parts are clipped each for itself
    "identity": {"linear": True, "orthogonal": True, "scale": "equivariant", "idempotent": True},
    "set_to_zero": {"linear": True, "orthogonal": True, "scale": "invariant", "idempotent": True},
}
"""By the name of an entry, what differs from the defaults of `Declared` in every case."""


def declared(entry: Entry, case: dict[str, Any]) -> Declared:
    """What holds for a case of the catalogue: from the entry, from its arguments, and from `QUIRKS`."""
    stored = [value for value in case.values() if isinstance(value, torch.dtype)]
    facts: dict[str, Any] = {
        "hyperparameters": entry.scalars,
        "complex": entry.complex,
        "order_matters": entry.ordered,
        "fixed_structure": isinstance(case.get("mask"), dict),
        "stored_in": min(stored, key=lambda dtype: -torch.finfo(dtype).eps, default=None),
        "float32_tolerance": entry.float32_tolerance,
    }
    quirks = QUIRKS.get(entry.name, {})
    if case.get("opaque"):
        facts["float32_tolerance"] = None  # it asks for gradients at points that the params' dtype has
    if "weight_decay_rate" in case:
        facts |= DECAYS
    if "state_dtype" in case:
        facts["zero_fixpoint"] = None  # params follow a rounded z
    if stored:
        quirks = {name: value for name, value in quirks.items() if name != "linear"}  # rounding is not
    return Declared(**{**facts, **quirks})


ADAM_BOUND = 0.1 * (1 - 0.9) / (1 - 0.999) ** 0.5
"""The largest step of Adam: one gradient after nothing (Kingma & Ba, section 2.1)."""

SPECIAL: dict[str, tuple[Any, Declared]] = {
    "adam without ε does not see the gradient's scale": (
        functools.partial(fo.adam, 0.1, eps=0.0),
        Declared(scale="invariant", bounded=ADAM_BOUND, descends=True, hyperparameters=()),
    ),
    "rmsprop without ε does not see the gradient's scale": (
        functools.partial(fo.rmsprop, 0.1, eps=0.0),
        Declared(scale="invariant", bounded=0.1 / 0.1**0.5, descends=True, hyperparameters=()),
    ),
    "sgd turns with its gradients": (functools.partial(fo.sgd, 0.1), Declared(orthogonal=True, direction=None)),
    "signs times a rate": (
        lambda: fo.chain(fo.scale_by_sign(), fo.scale_by_learning_rate(0.1)),
        Declared(magnitude=0.1, bounded=0.1, scale="invariant", descends=True),
    ),
    "clip": (functools.partial(fo.clip, 0.7), Declared(bounded=0.7, idempotent=True, complex=False)),
    "clip_by_global_norm": (functools.partial(fo.clip_by_global_norm, 1.5), Declared(norm_bounded=1.5)),
    "a projection": (
        lambda: fo.keep_params_in(fo.projection_l2_ball),
        Declared(coupling="treewise", zero_fixpoint=None, odd=False, idempotent=True),
    ),
    "three gradients": (
        lambda: fo.accumulate_gradients(fo.adam(0.1), 3),
        Declared(accumulates=(3, fo.adam(0.1))),
    ),
    "adam is its definition": (
        lambda: fo.chain(fo.scale_by_adam(0.8, 0.95, 1e-3), fo.scale(-0.1)),
        Declared(reference=fo.adam(0.1, 0.8, 0.95, 1e-3)),
    ),
    "trace is a sum": (
        functools.partial(fo.trace, 0.5),
        Declared(reference=lambda params, gradients: summed(gradients, 0.5)),
    ),
}
"""Transformations with numbers of which more is known than of the entries: what makes them, and what is known."""


def summed(gradients: list[Any], decay: float) -> list[Any]:
    """The updates of `trace` as they are defined: sums of powers of the decay."""
    updates = [tree.map(torch.zeros_like, gradients[0])]
    for grads in gradients:
        updates.append(tree.map(lambda total, g: decay * total + g, updates[-1], grads))
    return updates[1:]
