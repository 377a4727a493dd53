"""Accumulation over micro-batches, and steps taken under a condition."""

from tests.catalogue.entry import Entry

ACCUMULATION: tuple[Entry, ...] = ()

ACCUMULATION_ELSEWHERE: dict[str, str] = {}
"""Public functions that are no transformation, and the file that tests them."""
