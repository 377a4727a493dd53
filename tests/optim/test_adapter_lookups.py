"""What the adapter looks up instead of finding it out again is always what it would find."""

import pytest
import torch

import funcopt as fo
from funcopt.optim import Optimizer, as_optimizer
from tests.trees import assert_identical


def parameters(count=2):
    return [torch.nn.Parameter(torch.full((2,), 1.0 + i)) for i in range(count)]


def step(optimizer, times=1, value=1.0):
    for _ in range(times):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, value)
        optimizer.step()


def numbers(optimizer):
    return [param.detach().clone() for group in optimizer.param_groups for param in group["params"]]


def test_a_factory_of_the_library_is_called_again_for_other_numbers_only(monkeypatch):
    calls = []
    optimizer = as_optimizer(fo.sgd)(parameters(), lr=0.1)
    make = optimizer._recipe.make
    monkeypatch.setattr(optimizer._recipe, "make", lambda **arguments: calls.append(arguments) or make(**arguments))
    optimizer._recipe.make.__module__ = make.__module__
    step(optimizer)
    made = len(calls)
    step(optimizer, 3)
    assert len(calls) == made
    optimizer.param_groups[0]["lr"] = 0.2
    before = numbers(optimizer)
    step(optimizer, 2)
    assert len(calls) == made + 1
    assert_identical(numbers(optimizer), [param - 0.2 - 0.2 for param in before])


def test_a_factory_of_the_users_is_called_at_every_step():
    scale = [1.0]

    def scaled(learning_rate=0.1):
        return fo.sgd(learning_rate * scale[0])

    optimizer = as_optimizer(scaled)(parameters(1))
    step(optimizer)
    scale[0] = 2.0
    step(optimizer)
    torch.testing.assert_close(numbers(optimizer), [torch.full((2,), 1 - 0.1 - 0.2)])


def test_entries_that_change_in_place_are_seen():
    rate = torch.tensor(0.1)
    optimizer = as_optimizer(fo.adam)(parameters(1), lr=rate, betas=[0.0, 0.0], eps=0.0)
    step(optimizer)
    rate.fill_(0.2)
    step(optimizer)
    torch.testing.assert_close(numbers(optimizer), [torch.full((2,), 1 - 0.1 - 0.2)])
    optimizer.param_groups[0]["betas"][0] = 0.5
    step(optimizer)
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["mu"], torch.full((2,), 1.0))
    step(optimizer, value=-1.0)
    torch.testing.assert_close(state["mu"], torch.zeros(2))


def test_a_factory_may_compute_with_a_tensor():
    def doubled(learning_rate):
        return fo.sgd(learning_rate * 2)

    doubled.__module__ = fo.sgd.__module__
    rate = torch.tensor(0.1)
    optimizer = as_optimizer(doubled)(parameters(1), lr=rate)
    step(optimizer)
    rate.fill_(0.2)
    step(optimizer)
    torch.testing.assert_close(numbers(optimizer), [torch.full((2,), 1 - 0.2 - 0.4)])


def test_a_count_that_a_group_gets_for_itself_is_used():
    """Equal groups are moved together, unless one of them has what is shared for itself."""
    params = parameters()
    optimizer = as_optimizer(fo.adam)([{"params": [param]} for param in params], lr=0.1)
    step(optimizer, 2)
    assert "step" not in optimizer.state[params[1]]
    optimizer.state[params[1]]["step"] = torch.tensor(7, dtype=torch.int32)
    step(optimizer, 2)
    assert [int(optimizer.state[param]["step"]) for param in params] == [4, 9]


def test_states_that_are_taken_away_are_made_again():
    params = parameters()
    optimizer = as_optimizer(fo.sgd)(params, lr=0.1, momentum=0.9)
    step(optimizer, 2)
    (name,) = optimizer.state[params[1]]
    optimizer.state[params[1]] = {"of another": optimizer.state[params[1]][name]}  # as many entries as before
    step(optimizer)
    torch.testing.assert_close(optimizer.state[params[1]][name], torch.ones(2))
    torch.testing.assert_close(optimizer.state[params[0]][name], torch.full((2,), 2.71))


def test_a_parameter_of_another_shape_or_name_is_another_tree():
    optimizer = as_optimizer(fo.sgd)([("a", parameters(1)[0])], lr=0.1)
    step(optimizer)
    optimizer.param_groups[0]["params"][0].data = torch.ones(3)
    step(optimizer)
    torch.testing.assert_close(numbers(optimizer), [torch.full((3,), 0.9)])
    optimizer.param_groups[0]["param_names"] = ["b"]
    step(optimizer)
    assert [*optimizer._stepper.views(optimizer._how(), optimizer.param_groups, optimizer.state)[0].params] == ["b"]


def test_nothing_is_written_where_an_update_does_not_fit():
    def update(updates, state, params=None, **extra):
        return [updates[0], torch.ones(3)], state

    optimizer = Optimizer(parameters(), fo.GradientTransformation(lambda params: (), update))
    before = numbers(optimizer)
    with pytest.raises(RuntimeError, match="size of tensor"):
        step(optimizer)
    assert_identical(numbers(optimizer), before)


@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.float64), (torch.float32,) * 2]
)
def test_updates_are_added_in_the_wider_dtype(dtypes):
    own, wide = dtypes

    def update(updates, state, params=None, **extra):
        return [leaf.to(wide) / 3 for leaf in updates], state

    param = torch.nn.Parameter(torch.linspace(-2, 2, 1001).to(own))
    expected = fo.apply_updates(param.detach(), torch.ones(1001, dtype=own).to(wide) / 3)
    optimizer = Optimizer([param], fo.GradientTransformation(lambda params: (), update))
    step(optimizer)
    assert_identical(param.detach(), expected)
