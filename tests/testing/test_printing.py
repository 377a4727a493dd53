"""What was drawn prints as source, and the reproducer is a script that runs."""

import contextlib
import io

import pytest
import torch
from hypothesis import Phase, given, settings, strategies as st
from hypothesis.vendor.pretty import pretty

import funcopt as fo
from funcopt import tree
from funcopt.testing import compositions
from funcopt.testing.printing import source
from funcopt.testing.scripts import reproducer
from funcopt.testing.strategies import gradient_sequences_for, params, schedules, states, transformations
from tests.testing.search import PROFILE


def test_a_falsified_test_shows_what_can_be_pasted():
    @settings(PROFILE, phases=(Phase.generate, Phase.shrink))
    @given(params(), schedules(), transformations())
    def run(parameters, schedule, tx):
        raise AssertionError

    with pytest.raises(AssertionError) as caught:
        run()
    shown = " ".join("\n".join(caught.value.__notes__).split())
    assert "parameters=torch.tensor(0.0, dtype=torch.float32)," in shown
    assert "schedule=constant_schedule(value=0.1)," in shown
    assert "tx=identity()," in shown


@settings(PROFILE, max_examples=150)
@given(transformations(2, as_tensors=True))
def test_transformations_print_as_source_that_makes_them_again(tx):
    names = {**vars(compositions), **vars(fo), "torch": torch}
    assert source(eval(pretty(tx), names)) == source(tx)


@settings(PROFILE, max_examples=30)
@given(states(fo.chain(fo.adam(0.1), fo.clip(1.0)), {"a": torch.ones(2)}))
def test_states_print_as_source_that_makes_them_again(state):
    again = eval(pretty(state), {**vars(fo), "torch": torch})
    assert tree.flatten(again)[1] == tree.flatten(state)[1]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tree.leaves(again), tree.leaves(state)))


def run_script(script):
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(script, names)
    return names, printed.getvalue()


@settings(PROFILE, max_examples=60)
@given(st.data())
def test_a_reproducer_runs_and_arrives_at_the_same_values(data):
    tx = data.draw(transformations(2, as_tensors=data.draw(st.booleans())))
    parameters = data.draw(params(min_leaves=0))
    gradients = data.draw(gradient_sequences_for(parameters))
    names, printed = run_script(reproducer(parameters, gradients, tx))
    state = tx.init(parameters)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, parameters)
        parameters = fo.apply_updates(parameters, updates)
    assert source(names["params"]) == source(parameters) and source(names["state"]) == source(state)
    assert printed.count("step ") == len(gradients)


def test_a_reproducer_imports_what_it_needs_and_no_more():
    script = reproducer({"a": torch.ones(2)}, [{"a": torch.zeros(2)}], fo.chain(fo.clip(1.0), fo.sgd(0.1)))
    assert script.startswith(
        "import torch\nfrom funcopt import apply_updates, chain, clip, sgd\n\nparams = {'a': torch."
    )


@fo.factory
def halved(strength: float = 0.5) -> fo.GradientTransformation:
    """A factory of a user's, at the top of a module."""
    return fo.scale(strength)


def test_a_reproducer_imports_the_factory_of_a_user_from_its_module():
    script = reproducer({}, [{}], fo.chain(halved(), fo.scale_by_schedule(fo.constant_schedule(0.1))))
    assert f"from {__name__} import halved" in script and "constant_schedule, scale_by_schedule" in script


def test_a_reproducer_says_what_it_cannot_import():
    @fo.factory
    def local() -> fo.GradientTransformation:
        return fo.identity()

    script = reproducer({}, [{}], local())
    assert f"# define here: local, of {__name__}" in script
