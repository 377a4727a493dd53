"""Masks, partitions, multipliers by path."""

from tests.catalogue.entry import Entry

MASKING: tuple[Entry, ...] = ()

MASKING_ELSEWHERE: dict[str, str] = {}
"""Public functions that are no transformation, and the file that tests them."""
