"""torch.optim.Adafactor on the pure core."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from funcopt.numerics import realise
from funcopt.optim.drop_in import Cohort, DropIn, drop_in, scalar_state
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.rules.adafactor import FactoredState, scale_by_factored_rms
from funcopt.transform import EmptyState, GradientTransformation, Params, Updates, chain
from funcopt.transforms.clipping import clip_by_block_rms
from funcopt.transforms.scaling import scale_by_param_block_rms


def _rule(hyper: Hyper) -> Rule:
    if "factored" not in hyper:
        return Rule(_direction(hyper, factored=True), ("step",))  # what all parameters have, whatever their shape
    moments = ("row_var", "col_var") if hyper["factored"] else ("variance",)
    return Rule(_direction(hyper, hyper["factored"]), ("step", *moments))


def _direction(hyper: Hyper, factored: bool) -> GradientTransformation:
    """That of leaves that are all factored, or all not, with a state of the moments that these have."""
    eps, min_scale = hyper["eps"]
    decay = -hyper["beta2_decay"]
    by_rms = scale_by_factored_rms(factored, decay, 0, 0, eps, factored_dims="last", eps_mode="floor")
    relative = chain(clip_by_block_rms(hyper["d"]), scale_by_param_block_rms(min_scale))

    def kept(state: FactoredState) -> tuple[Any, ...]:
        return (state.count, state.v_row, state.v_col) if factored else (state.count, state.v)

    def init(params: Params) -> tuple[Any, ...]:
        return kept(by_rms.init(params))

    def update(
        updates: Updates, state: tuple[Any, ...], params: Params | None = None, **extra: Any
    ) -> tuple[Updates, tuple[Any, ...]]:
        count, *moments = state
        unused = [gradient.new_zeros(0) for gradient in updates]
        before = FactoredState._make((count, *moments, unused) if factored else (count, unused, unused, *moments))
        updates, after = by_rms.update(updates, before, params)
        updates, _ = relative.update(updates, (EmptyState(), EmptyState()), params)
        return updates, kept(after)

    return GradientTransformation(init, update, "leafwise")


def _learning_rate(hyper: Hyper, count: Tensor) -> Tensor:
    return realise((count.double() + 1).rsqrt().clamp(max=hyper["lr"]))


@drop_in
class Adafactor(DropIn, torch.optim.Adafactor):
    """`torch.optim.Adafactor`: the same arguments, groups, state and numbers; `compile=True` besides.

        R, C ← running means of g² over the last axis and the one before, β = 1 - t^τ        V = R C / mean(R)
        θ ← (1 - γ λ) θ - max(ε₂, RMS(θ)) min(γ, 1/√t) d / max(1, RMS(d) / d_max)        d = g / √V

    V is at least ε₁². Unlike in torch, an ε₁ of None is the machine epsilon of each parameter's own dtype, where torch
    takes that of the first one for all.
    """

    definition = Definition(_rule, _learning_rate, elementwise=False, decoupled=True)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """Zero means: of rows and columns of a parameter of two axes or more, else of each number."""
        assert param.grad is not None
        shapes = _shapes(param)
        moments = {key: param.grad.new_zeros(shape) for key, shape in shapes.items()}
        if "variance" in shapes:
            moments = {"variance": torch.zeros_like(param.grad)}
        return {"step": scalar_state(param, {}), **moments}

    def check_gradient(self, param: Tensor, group: Hyper) -> None:
        """Complex parameters have no place here, as in torch."""
        if param.is_complex():
            raise RuntimeError("Adafactor does not support complex parameters")
        super().check_gradient(param, group)

    def _check_state(self, param: Tensor, state: dict[str, Any]) -> None:
        expected = _shapes(param)
        for key in ("row_var", "col_var", "variance"):
            if key in state and tuple(state[key].shape) != expected.get(key):
                raise ValueError(
                    f"Adafactor.load_state_dict: {key!r} has the shape {tuple(state[key].shape)}, but the "
                    f"parameter in its place has {tuple(param.shape)}; state dicts are matched by position, so give "
                    "the parameters in the order in which they were saved."
                )

    def _kind(self, param: Tensor, grad: Tensor) -> Hashable:
        return super()._kind(param, grad), param.ndim > 1

    def _hyper_of(self, cohort: Cohort, hyper: Hyper) -> Hyper:
        eps, min_scale = hyper["eps"]
        first = cohort.params[0]
        eps = torch.finfo(first.dtype).eps if eps is None else eps
        return {**hyper, "eps": (eps, min_scale), "factored": first.ndim > 1}


def _shapes(param: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of the moments of a parameter."""
    if param.ndim < 2:
        return {"variance": tuple(param.shape)}
    *batch, rows, columns = param.shape
    return {"row_var": (*batch, rows, 1), "col_var": (*batch, 1, columns)}
