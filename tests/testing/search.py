"""Examples of strategies: many of them, or the one that a failing test would end with."""

from hypothesis import find, given, settings

PROFILE = settings(derandomize=True, database=None, max_examples=80, deadline=None)
"""The same examples in each run; no health check is switched off."""


def simplest(strategy, condition=lambda value: True):
    """The example to which hypothesis shrinks those that meet a condition."""
    return find(strategy, condition, settings=settings(PROFILE, max_examples=2000))


def examples(strategy, count=150):
    drawn = []

    @settings(PROFILE, max_examples=count)
    @given(strategy)
    def run(value):
        drawn.append(value)

    run()
    return drawn
