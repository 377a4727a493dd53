"""Searches along a line for a step that decreases a function enough."""
