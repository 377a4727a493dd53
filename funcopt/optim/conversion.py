"""The state of a functional optimizer from a state dict of torch.optim, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from funcopt import tree
from funcopt.rules.adadelta import ScaleByAdaDeltaState
from funcopt.rules.adafactor import FactoredState
from funcopt.rules.adagrad import ScaleByRssState
from funcopt.rules.adam import ScaleByAdamState
from funcopt.rules.adamax import ScaleByAdamaxState
from funcopt.rules.amsgrad import ScaleByAmsgradState
from funcopt.rules.asgd import ASGDState
from funcopt.rules.muon import MuonState
from funcopt.rules.nadam import ScaleByNadamState
from funcopt.rules.radam import ScaleByRadamState
from funcopt.rules.rmsprop import ScaleByRmsState, ScaleByRStdDevState
from funcopt.rules.rprop import ScaleByRpropState
from funcopt.transform import Params, State
from funcopt.transforms.momentum import TraceState
from funcopt.transforms.scaling import ScaleByLearningRateState

KEYS: Mapping[type, Mapping[str, str]] = {
    ScaleByAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    ScaleByAmsgradState: {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
    ScaleByAdamaxState: {"mu": "exp_avg", "nu": "exp_inf"},
    ScaleByNadamState: {"mu_product": "mu_product", "mu": "exp_avg", "nu": "exp_avg_sq"},
    ScaleByRadamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    ScaleByRmsState: {"nu": "square_avg"},
    ScaleByRStdDevState: {"nu": "square_avg", "mu": "grad_avg"},
    ScaleByRpropState: {"prev": "prev", "step_size": "step_size"},
    ScaleByAdaDeltaState: {"e_g": "square_avg", "e_x": "acc_delta"},
    ScaleByRssState: {"sum_of_squares": "sum"},
    ASGDState: {"eta": "eta", "mu": "mu", "ax": "ax"},
    FactoredState: {"v_row": "row_var", "v_col": "col_var", "v": "variance"},
    MuonState: {"mu": "momentum_buffer"},
    TraceState: {"trace": "momentum_buffer"},
}
"""The states that funcopt and torch.optim both have: for each field, the key in torch's state of a parameter."""

SCALARS = {"mu_product", "eta", "mu"}  # keys with one number for all of a parameter
WITHOUT_STEP = {TraceState, MuonState}  # states of classes of torch that count no steps


def state_from_torch(state_dict: dict[str, Any], state: State, params: Params) -> State:
    """The functional `state`, with the numbers of a state dict of torch.optim, or of funcopt.optim.

    Hyperparameters are not taken over: they belong to the transformation.

    Args:
        state_dict: `state_dict()` of an imperative optimizer of the same parameters, in the order of the leaves of
            `params`. A parameter that has no state there, since it never had a gradient, keeps its own.
        state: what `init(params)` of the functional optimizer returns; it is not changed.
        params: the tree of parameters.

    Raises:
        ValueError: a part of `state` has no counterpart, a number is missing, its shape differs, the parameters took
            different numbers of steps, or the rate is inside of the momentum here and outside in torch (`rmsprop`).

    >>> params = [torch.zeros(2, requires_grad=True)]
    >>> former = torch.optim.Adam(params, lr=0.1)
    >>> former.step(lambda: params[0].sum().backward())
    >>> state_from_torch(former.state_dict(), scale_by_adam().init(params), params).count
    tensor(1, dtype=torch.int32)
    """
    leaves, structure = tree.flatten(params)
    columns = [state_dict["state"].get(index, {}) for index in range(len(leaves))]
    return _map_parts("state_from_torch", state, lambda part: _filled(part, structure, columns))


def state_to_torch(state: State, params: Params, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict for torch.optim or funcopt.optim, with the numbers of the functional `state`.

    Args:
        state: the state of a functional optimizer of `params`.
        params: the tree of parameters.
        state_dict: `state_dict()` of the imperative optimizer that is to go on, whose groups are kept: of the same
            parameters, in the order of the leaves of `params`.

    Raises:
        ValueError: a part of `state` has no counterpart in torch.optim, as in `state_from_torch`.

    >>> params = [torch.zeros(2, requires_grad=True)]
    >>> successor = torch.optim.Adam(params, lr=0.1)
    >>> state_dict = state_to_torch(scale_by_adam().init(params), params, successor.state_dict())
    >>> successor.load_state_dict(state_dict)
    """
    leaves, structure = tree.flatten(params)
    columns: list[dict[str, Any]] = [{} for _ in leaves]
    parts: list[Any] = []

    def kept(part: Any) -> Any:
        parts.append(part)
        return part

    _map_parts("state_to_torch", state, kept)
    for part in parts:
        for field, key in KEYS.get(type(part), {}).items():
            for column, value in zip(columns, _values(getattr(part, field), key, structure)):
                if isinstance(value, Tensor) and (value.numel() or type(part) is not FactoredState):
                    column[key] = value.detach().clone()
    steps = max((int(part.count) for part in parts if "count" in part._fields), default=0)
    if not {type(part) for part in parts if type(part) in KEYS} <= WITHOUT_STEP:
        columns = [{"step": torch.tensor(float(steps)), **column} if column else {} for column in columns]
    return {**state_dict, "state": {index: column for index, column in enumerate(columns) if column}}


def _filled(part: Any, structure: Any, columns: list[dict[str, Any]]) -> Any:
    """One state, with torch's numbers in its fields."""
    changes: dict[str, Any] = {}
    involved = columns
    for field, key in KEYS.get(type(part), {}).items():
        values = _values(getattr(part, field), key, structure)
        if key in SCALARS:
            changes[field] = _common(key, getattr(part, field), columns)
            continue
        involved = [column for column, value in zip(columns, values) if isinstance(value, Tensor)]
        taken = [_taken(key, value, column) for value, column in zip(values, columns)]
        changes[field] = tree.unflatten(taken, structure)
    if "count" in part._fields:
        changes["count"] = _common("step", part.count, involved)
    return part._replace(**changes)


def _values(field: Any, key: str, structure: Any) -> list[Any]:
    """What a field holds for each parameter; nothing that is a tensor where a parameter is masked."""
    return [field] * structure.num_leaves if key in SCALARS else tree.leaves_up_to(structure, field)


def _taken(key: str, own: Any, column: dict[str, Any]) -> Any:
    if not isinstance(own, Tensor) or not column or (own.numel() == 0 and key not in column):
        return own
    if key not in column:
        raise ValueError(f"state_from_torch: the state dict has no {key!r}, only {', '.join(map(repr, column))}.")
    if column[key].shape != own.shape:
        raise ValueError(
            f"state_from_torch: {key!r} has the shape {tuple(column[key].shape)} in the state dict, and "
            f"{tuple(own.shape)} in the state; the leaves of params must be in the order of the optimizer's parameters."
        )
    return torch.empty_like(own).copy_(column[key].detach())


def _common(key: str, own: Tensor, columns: list[dict[str, Any]]) -> Tensor:
    """A number that all parameters have in common here, and each for itself in torch."""
    values = sorted({float(column[key]) for column in columns if key in column})
    if len(values) > 1:
        raise ValueError(
            f"state_from_torch: {key!r} differs between the parameters ({', '.join(map(str, values))}), but the "
            "functional state has one for all; give them to different parts of a `partition`."
        )
    return torch.full_like(own, values[0]) if values else own.clone()


def _map_parts(caller: str, state: State, fn: Callable[[Any], Any]) -> State:
    """`state` with `fn(part)` in place of every part that torch knows, or that counts steps."""
    if type(state) in KEYS:
        return fn(state)
    if isinstance(state, Tensor):
        if state.ndim:
            raise ValueError(
                f"{caller}: the state holds a tensor of shape {tuple(state.shape)} that no class of torch.optim has."
            )
        return state.clone()
    if isinstance(state, dict):
        return {key: _map_parts(caller, value, fn) for key, value in state.items()}
    if hasattr(state, "_fields"):
        counted = fn(state) if "count" in state._fields else state
        return type(state)(
            *(
                getattr(counted, field) if field == "count" else _map_parts(caller, getattr(counted, field), fn)
                for field in state._fields
            )
        )
    if isinstance(state, (tuple, list)):
        _check_momentum(caller, state)
        return type(state)(_map_parts(caller, value, fn) for value in state)
    return state


def _check_momentum(caller: str, chained: Any) -> None:
    kinds = [type(part) for part in chained]
    if ScaleByLearningRateState in kinds and TraceState in kinds[kinds.index(ScaleByLearningRateState) :]:
        raise ValueError(
            f"{caller}: the learning rate is inside of this momentum, and outside in torch.optim; "
            "put `trace` before `scale_by_learning_rate` in the chain."
        )
