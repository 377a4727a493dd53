"""Hyperparameters in the state."""

from tests.catalogue.entry import Entry

HYPERPARAMS: tuple[Entry, ...] = ()

HYPERPARAMS_ELSEWHERE: dict[str, str] = {}
"""Public functions that are no transformation, and the file that tests them."""
