"""Wrappers whose parameters differ between training and evaluation, and tuners of the learning rate."""

from tests.catalogue.entry import Entry

AVERAGING: tuple[Entry, ...] = ()

AVERAGING_ELSEWHERE: dict[str, str] = {}
"""Public functions that are no transformation, and the file that tests them."""
