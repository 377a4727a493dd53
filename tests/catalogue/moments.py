"""The relatives of Adam, and Adadelta."""

from typing import Any

from tests.catalogue.entry import DECAY_MASK, Entry, decaying, no_counterpart, only_matrices, variant_of
from tests.catalogue.optimizers import ADAM, ADAM_SCALARS


def downhill_adadelta(learning_rate: Any = 1.0, **kwargs: Any) -> Any:
    """optax's adadelta, which goes uphill unless it is given a rate."""
    import optax

    return optax.adadelta(learning_rate, **kwargs)


MOMENTS: tuple[Entry, ...] = (
    Entry(
        "adamax",
        ({"learning_rate": 0.05}, {"learning_rate": decaying, "b1": 0.8, "b2": 0.95, "eps": 1e-3}),
        scalars=("learning_rate", "b1", "b2", "eps"),
    ),
    Entry(
        "adamaxw",
        (
            {"learning_rate": decaying, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.1, "mask": DECAY_MASK},
            {"learning_rate": 0.05, "weight_decay": 0.1},
        ),
        scalars=("learning_rate", "weight_decay"),
    ),
    Entry(
        "dozat_nadam",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "momentum_decay": 0.5},
        ),
        scalars=("learning_rate", "b1", "b2", "eps", "momentum_decay"),
        optax=no_counterpart,
    ),
    Entry(
        "radam",
        (
            {"learning_rate": 0.05},
            {"learning_rate": decaying, **ADAM, "threshold": 6.0, "nesterov": True},
            {"learning_rate": 0.05, **ADAM, "eps_on": "raw"},
        ),
        scalars=("learning_rate", *ADAM_SCALARS),
        optax=variant_of("radam", eps_on="corrected"),
    ),
    Entry(
        "adadelta",
        (
            {"learning_rate": 0.5, "eps": 1e-2},
            {"learning_rate": decaying, "rho": 0.8, "eps": 1e-3, "weight_decay": decaying},
            {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1, "weight_decay_mask": only_matrices},
        ),
        scalars=("learning_rate", "rho", "eps", "weight_decay"),
        optax=downhill_adadelta,
    ),
    Entry("scale_by_adamax", ({"b1": 0.8, "b2": 0.95, "eps": 1e-3},), scalars=("b1", "b2", "eps")),
    Entry(
        "scale_by_nadam",
        ({"b1": 0.8, "b2": 0.95, "eps": 1e-3, "momentum_decay": 0.5},),
        scalars=("b1", "b2", "eps", "momentum_decay"),
        optax=no_counterpart,
    ),
    Entry(
        "scale_by_radam",
        (ADAM,),
        scalars=ADAM_SCALARS,
    ),
    Entry("scale_by_adadelta", ({"rho": 0.8, "eps": 1e-3},), scalars=("rho", "eps")),
)
