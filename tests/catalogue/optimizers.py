"""Every public optimizer."""

import torch

from tests.catalogue.entry import DECAY_MASK, Entry, decaying, only_matrices, variant_of

ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-4}
ADAM_SCALARS = ("b1", "b2", "eps", "eps_root")

OPTIMIZERS: tuple[Entry, ...] = (
    Entry(
        "sgd",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "momentum": 0.8},
            {"learning_rate": 0.05, "momentum": 0.8, "nesterov": True},
            {"learning_rate": 0.05, "momentum": 0.8, "accumulator_dtype": torch.bfloat16},
        ),
        scalars=("learning_rate", "momentum"),
    ),
    Entry(
        "adam",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, **ADAM},
            {"learning_rate": 0.05, "mu_dtype": torch.bfloat16},
            {"learning_rate": 0.05, "b1": 0.0, "b2": 0.0, "eps": 0.1},
        ),
        scalars=("learning_rate", *ADAM_SCALARS),
    ),
    Entry("nadam", ({"learning_rate": 0.05}, {"learning_rate": decaying, **ADAM}), ("learning_rate", *ADAM_SCALARS)),
    Entry(
        "adamw",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, **ADAM, "weight_decay": 0.1},
            {"learning_rate": 0.05, "weight_decay": decaying, "mask": DECAY_MASK},
            {"learning_rate": 0.05, "weight_decay": 0.1, "mask": only_matrices},
            {"learning_rate": 0.05, "weight_decay": 0.0},
        ),
        scalars=("learning_rate", *ADAM_SCALARS, "weight_decay"),
    ),
    Entry(
        "nadamw",
        ({"learning_rate": 0.05}, {"learning_rate": decaying, **ADAM, "weight_decay": 0.1, "mask": DECAY_MASK}),
        scalars=("learning_rate", *ADAM_SCALARS, "weight_decay"),
    ),
    Entry(
        "amsgrad",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, **ADAM},
            {"learning_rate": 0.05, **ADAM, "bias_correction_mu": False, "bias_correction_nu": False},
            {"learning_rate": 0.05, **ADAM, "max_of": "raw"},
        ),
        scalars=("learning_rate", *ADAM_SCALARS),
        optax=variant_of("amsgrad", max_of="corrected"),
    ),
    Entry(
        "adagrad",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "initial_accumulator_value": 0.3, "eps": 1e-3},
            {"learning_rate": 0.05, "initial_accumulator_value": 0.0},
            {"learning_rate": 0.05, "initial_accumulator_value": 0.3, "eps": 1e-3, "eps_in_sqrt": False},
        ),
        scalars=("learning_rate", "initial_accumulator_value", "eps"),
        optax=variant_of("adagrad", eps_in_sqrt=True),
    ),
    Entry(
        "rmsprop",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "decay": 0.8, "eps": 1e-3, "initial_scale": 0.5, "momentum": 0.7},
            {"learning_rate": 0.05, "eps": 1e-3, "eps_in_sqrt": False, "momentum": 0.7, "nesterov": True},
            {"learning_rate": 0.05, "eps": 1e-2, "initial_scale": 0.5, "centered": True, "bias_correction": True},
        ),
        scalars=("learning_rate", "decay", "eps", "initial_scale", "momentum"),
        float32_tolerance=1e-5,  # the variance is a difference
    ),
)
