"""Monitors, metrics, projections, and changes of the tree."""

from tests.catalogue.entry import Entry

MONITORS: tuple[Entry, ...] = ()

MONITORS_ELSEWHERE: dict[str, str] = {}
"""Public functions that are no transformation, and the file that tests them."""
