"""What a transformation declares to depend on is what it depends on."""

import pytest
import torch

from funcopt import tree
from tests.catalogue import CASES, case_id
from tests.trees import draw

DECLARED = {
    coupling: [c for c in CASES if c[0].make(**c[1]).coupling == coupling] for coupling in ("elementwise", "leafwise")
}


def outputs_after_a_change(entry, case, change):
    """Updates of two steps, and of two steps with changed gradients."""
    results = []
    for grads in (draw(2), change(draw(2))):
        transformation, params = entry.make(**case), draw(1)
        first, state = transformation.update(grads, transformation.init(params), params)
        results.append(transformation.update(draw(3), state, params)[0] | {"first": first})
    return results


@pytest.mark.parametrize("entry, case", DECLARED["elementwise"] + DECLARED["leafwise"], ids=case_id)
def test_a_leaf_depends_on_no_other_leaf(entry, case):
    def change(grads):
        grads["a"]["weight"] += 1000.0
        return grads

    before, after = outputs_after_a_change(entry, case, change)
    for (path, old), (_, new) in zip(tree.leaves_with_path(before), tree.leaves_with_path(after)):
        assert torch.equal(old, new) or path.endswith("a.weight"), path


@pytest.mark.parametrize("entry, case", DECLARED["elementwise"], ids=case_id)
def test_a_number_depends_on_no_other_number(entry, case):
    def change(grads):
        grads["a"]["weight"][0, 0] += 1000.0
        return grads

    before, after = outputs_after_a_change(entry, case, change)
    untouched = torch.ones(4, 3, dtype=torch.bool)
    untouched[0, 0] = False
    for old, new in ((before, after), (before["first"], after["first"])):
        assert torch.equal(old["a"]["weight"][untouched], new["a"]["weight"][untouched])


def test_all_three_kinds_occur():
    assert len(DECLARED["elementwise"]) > 20
    assert len(DECLARED["leafwise"]) > 2
    assert len(CASES) > len(DECLARED["elementwise"]) + len(DECLARED["leafwise"])
