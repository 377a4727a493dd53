"""Checkpoints: torch's format, both ways; copies instead of shared tensors; names and shapes checked."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

import funcopt.optim
from tests.optim.classes import CASES, FIRST, TOLERANCE, Case, assert_same_way, built, give_gradients, parameters

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_class = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)


def steps(optimizer: torch.optim.Optimizer, params: list, first: int, number: int = 3) -> list[list[Tensor]]:
    history = []
    for step in range(first, first + number):
        give_gradients(params, step)
        optimizer.step()
        history.append([param.detach().clone() for param in params])
    return history


@every_case
@pytest.mark.parametrize("to", ["to torch", "from torch"])
def test_checkpoints_pass_both_ways(case: Case, to: str) -> None:
    """Saved by the one class and loaded by the other, training goes on as if nothing had happened."""
    writer, reader = (case.mine, case.theirs) if to == "to torch" else (case.theirs, case.mine)
    params = parameters(case.name)
    optimizer = built(writer, params, case.kwargs)
    steps(optimizer, params, 0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    moved = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = reader(moved)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    expected = steps(optimizer, params, 3)
    assert_same_way(steps(resumed, moved, 3), expected, max(3e-6, TOLERANCE.get(case.name, 0)))


@every_class
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_alike(case: Case, copied) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    steps(optimizer, params, 0)
    twin = copied(optimizer)
    its_params = [param for group in twin.param_groups for param in group["params"]]
    assert all(a is not b for a, b in zip(params, its_params))
    assert_same_way(steps(twin, its_params, 3), steps(optimizer, params, 3), 1e-15)


@every_class
def test_loaded_state_is_a_copy(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    steps(optimizer, params, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    other = built(case.mine, params, case.kwargs)
    other.load_state_dict(saved)
    steps(other, params, 3)
    for state, untouched in zip(saved["state"].values(), kept["state"].values()):
        for key, value in state.items():
            torch.testing.assert_close(value, untouched[key], rtol=0, atol=0, msg=f"{key} changed in the checkpoint")


def test_names_are_checked() -> None:
    first, second = parameters("Adam")[:2]
    saved = funcopt.optim.Adam([("first", first), ("second", second)]).state_dict()
    other = funcopt.optim.Adam([("second", second), ("first", first)])
    with pytest.raises(ValueError, match="saved with the parameter 'first' where this optimizer has 'second'"):
        other.load_state_dict(saved)
    del saved["param_groups"][0]["param_names"]
    other.load_state_dict(saved)


@every_class
def test_shapes_are_checked_before_anything_changes(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    steps(optimizer, params, 0)
    if not optimizer.state:
        return
    other = case.mine(params[::-1])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=rf"{case.name}\.load_state_dict: .* has the shape"):
        other.load_state_dict(optimizer.state_dict())
    assert str(other.state_dict()) == str(before)


def test_other_numbers_of_parameters_are_refused_as_torch_does() -> None:
    first, second = parameters("Adam")[:2]
    saved = funcopt.optim.Adam([first, second]).state_dict()
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        funcopt.optim.Adam([first]).load_state_dict(saved)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        funcopt.optim.Adam([{"params": [first]}, {"params": [second]}]).load_state_dict(saved)


@every_class
def test_scalars_keep_their_dtypes(case: Case) -> None:
    """Torch casts all but `step` to the dtype of the parameter, which rounds them to 8 bits here."""
    params = parameters(case.name, torch.bfloat16)
    optimizer = built(case.mine, params, case.kwargs)
    steps(optimizer, params, 0, 1)
    other = built(case.mine, params, case.kwargs)
    other.load_state_dict(optimizer.state_dict())
    for param in params:
        for key, value in optimizer.state[param].items():
            if isinstance(value, Tensor) and value.ndim == 0 and param.ndim:
                assert other.state[param][key].dtype == value.dtype, key
                assert other.state[param][key] == value, key


@every_class
def test_an_old_checkpoint_without_later_flags_loads(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    steps(optimizer, params, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    flags = [flag for flag in case.info.not_og_supported_flags if flag in saved["param_groups"][0]]
    for group in saved["param_groups"]:
        for flag in flags:
            del group[flag]
    for state in saved["state"].values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].item()
    moved = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = built(case.mine, moved, case.kwargs)
    resumed.load_state_dict(saved)
    assert_same_way(steps(resumed, moved, 3), steps(optimizer, params, 3), 1e-12)


@every_class
def test_the_state_dict_is_made_of_what_can_be_loaded_safely(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    steps(optimizer, params, 0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["params"] == list(range(len(params)))


@every_class
def test_compile_survives_copies(case: Case) -> None:
    optimizer = case.mine(parameters(case.name), compile={"backend": "aot_eager"})
    assert copy.deepcopy(optimizer)._compile == {"backend": "aot_eager"}
