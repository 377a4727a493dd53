"""torch.optim.LBFGS on pure rules: the loop over closures, around `rules.lbfgs` and `linesearch.strong_wolfe`."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from funcopt.linesearch.strong_wolfe import Point, advance_search, begin_search, found_point
from funcopt.optim.optimizer import Optimizer
from funcopt.optim.readers import is_called_for_states
from funcopt.rules.lbfgs import apply_inverse_hessian, curvature

Params: TypeAlias = list[Tensor]
Evaluate: TypeAlias = Callable[[], tuple[float, Tensor]]
"""The loss and its flat gradient where the parameters are now."""


class LBFGS(Optimizer, torch.optim.LBFGS):
    """`torch.optim.LBFGS`: the same arguments, group, state, numbers and calls of the closure.

        d = -H g        τ = γ, or by strong Wolfe conditions from γ on        θ ← θ + τ d

    H is the inverse Hessian of `funcopt.rules.lbfgs`. At the first iteration d = -g and τ starts at min(1, 1/‖g‖₁) γ.
    Complex parameters are two reals, an absent gradient is zero, a sparse one is made dense.

    Unlike torch's it can step after a deepcopy or unpickling, and always moves the parameters that are in its group,
    also if they have been replaced. A `line_search_fn` that is not known is refused before the closure is called.
    There is no `compile`: see `docs/torch-optim.md`.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
    >>> optimizer = LBFGS([weight], line_search_fn="strong_wolfe")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (weight - 2).square().sum()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)
    >>> weight.detach()
    tensor([2., 2.])
    """

    def __init__(self, params: Any, *args: Any, compile: Literal[False] = False, **kwargs: Any) -> None:
        if compile:
            raise TypeError(
                f"LBFGS: compile must be False, got {compile!r}: a graph would be compiled for every length of the "
                "history, in seconds each, and saves little of a step; compile the model that the closure calls."
            )
        super().__init__(params, *args, **kwargs)
        del self._params, self._numel_cache  # torch's copy of the list in the group

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Perform up to `max_iter` iterations, and return the loss before the first.

        Raises:
            TypeError: there is no closure, which evaluates the loss and its gradients.
            RuntimeError: `line_search_fn` is neither None nor "strong_wolfe".
        """
        if not self.state and is_called_for_states():  # which has no closure to give
            self.init_state()
            return None
        (group,) = self._only_group(closure)
        params = group["params"]
        self.init_state()
        state = self.state[params[0]]
        closure = torch.enable_grad()(closure)
        first_loss = closure()
        state["func_evals"] += 1
        loss, gradient = float(first_loss), flat_gradient(params)
        if bool(gradient.abs().max() > group["tolerance_grad"]):
            _iterate(params, group, state, loss, gradient, lambda: (float(closure()), flat_gradient(params)))
        return first_loss

    def init_state(self) -> None:
        """Make the state that the first step starts from, without a step: two counts, under the first parameter.

        The direction and the history are made by the first iteration, here as in torch.
        """
        state = self.state[self.param_groups[0]["params"][0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)

    def _only_group(self, closure: Any) -> list[dict[str, Any]]:
        if not callable(closure):
            raise TypeError(
                "LBFGS.step: needs a closure that clears the gradients, computes the loss, calls backward, and returns "
                f"the loss; got {closure!r}."
            )
        if len(self.param_groups) != 1:
            raise AssertionError(f"LBFGS.step: expected exactly one param_group, but got {len(self.param_groups)}.")
        if self.param_groups[0]["line_search_fn"] not in (None, "strong_wolfe"):
            raise RuntimeError(
                f"LBFGS.step: only 'strong_wolfe' is supported, got {self.param_groups[0]['line_search_fn']!r}."
            )
        return self.param_groups

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        torch.optim.LBFGS([torch.zeros(1)], **{key: group.get(key, value) for key, value in self.defaults.items()})

    def _check_state(self, param: Tensor, state: dict[str, Any]) -> None:
        expected = sum(2 * p.numel() if p.is_complex() else p.numel() for p in self.param_groups[0]["params"])
        if isinstance(state.get("d"), Tensor) and state["d"].numel() != expected:
            raise ValueError(
                f"LBFGS.load_state_dict: the direction that was saved has {state['d'].numel()} numbers, but the "
                f"parameters have {expected}; give the parameters of the model that was saved."
            )


def _iterate(
    params: Params, group: dict[str, Any], state: dict[str, Any], loss: float, gradient: Tensor, evaluate: Evaluate
) -> None:
    """Iterations until one of the tests of torch ends them."""
    rate, tolerance = float(group["lr"]), group["tolerance_change"]
    evaluations = 1
    for iteration in range(1, group["max_iter"] + 1):
        state["n_iter"] += 1
        direction = _update_direction(state, gradient, group["history_size"])
        state["prev_flat_grad"], state["prev_loss"] = gradient.clone(), loss
        state["t"] = min(1.0, 1.0 / float(gradient.abs().sum())) * rate if state["n_iter"] == 1 else rate
        if bool(gradient.dot(direction) > -tolerance):
            return
        calls = 0
        if group["line_search_fn"] is not None:
            limits = {"tolerance": tolerance, "max_trials": group["max_eval"] - evaluations}
            start = loss, gradient
            state["t"], loss, gradient, calls = _search(params, state["t"], direction, start, evaluate, **limits)
        move(params, state["t"], direction)
        if group["line_search_fn"] is None and iteration != group["max_iter"]:
            (loss, gradient), calls = evaluate(), 1
        evaluations += calls
        state["func_evals"] += calls
        if (
            evaluations >= group["max_eval"]
            or bool(gradient.abs().max() <= group["tolerance_grad"])
            or bool((direction * state["t"]).abs().max() <= tolerance)
            or abs(loss - state["prev_loss"]) < tolerance
        ):
            return


def _update_direction(state: dict[str, Any], gradient: Tensor, history_size: int) -> Tensor:
    """The direction of descent, after the last step has entered the history; kept in the state as well."""
    if state["n_iter"] == 1:
        state.update(d=-gradient, old_dirs=[], old_stps=[], ro=[], H_diag=1)
        return state["d"]  # type: ignore[no-any-return]
    step, change = state["d"] * state["t"], gradient - state["prev_flat_grad"]
    found = curvature(step, change)
    if bool(found.accepted):
        for key, value in (("old_dirs", change), ("old_stps", step), ("ro", found.inverse)):
            state[key] = [*state[key], value][-history_size:]
        state["H_diag"] = found.scale
    pairs = state["old_stps"], state["old_dirs"], state["ro"]
    state["d"], alphas = apply_inverse_hessian(-gradient, *pairs, state["H_diag"])
    state["al"] = [*alphas, *[None] * (history_size - len(alphas))]
    return state["d"]  # type: ignore[no-any-return]


def _search(
    params: Params, trial: float, direction: Tensor, start: tuple[float, Tensor], evaluate: Evaluate, **limits: Any
) -> tuple[float, float, Tensor, int]:
    """Step, loss and gradient by strong Wolfe conditions, and the calls that it took; the parameters stay."""
    before = [param.clone() for param in params]
    gradients = {0.0: start[1]}  # at the steps that may still be the result
    search = begin_search(_point(direction, 0.0, *start), _scalar(trial))
    largest = _scalar(direction.abs().max())
    while not bool(search.done):
        trial = float(search.trial)
        move(params, trial, direction)
        loss, gradients[trial] = evaluate()
        for param, value in zip(params, before):
            param.copy_(value)
        search = advance_search(search, _point(direction, trial, loss, gradients[trial]), largest=largest, **limits)
        gradients = {float(end.step): gradients[float(end.step)] for end in (search.start, search.left, search.right)}
    found = found_point(search)
    return float(found.step), float(found.value), gradients[float(found.step)], int(search.evaluations)


def _point(direction: Tensor, step: float, loss: float, gradient: Tensor) -> Point:
    return Point(_scalar(step), _scalar(loss), _scalar(gradient.dot(direction)))


def _scalar(value: float | Tensor) -> Tensor:
    """On the host, where the loop decides: one read of the device for each evaluation."""
    return torch.tensor(float(value), dtype=torch.float64)


def flat_gradient(params: Params) -> Tensor:
    """All gradients as one real vector."""
    return torch.cat([_flat_gradient_of(param) for param in params])


def _flat_gradient_of(param: Tensor) -> Tensor:
    if param.grad is None:
        return torch.zeros_like(torch.view_as_real(param) if param.is_complex() else param).reshape(-1)
    grad = param.grad.to_dense() if param.grad.is_sparse else param.grad
    return (torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad).reshape(-1)


def move(params: Params, step: float, direction: Tensor) -> None:
    """Add `step` times the flat real `direction` to the parameters, in place."""
    start = 0
    for param in params:
        real = torch.view_as_real(param) if param.is_complex() else param
        real.add_(direction[start : start + real.numel()].view_as(real), alpha=step)
        start += real.numel()
