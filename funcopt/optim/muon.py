"""torch.optim.Muon on the pure core."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from funcopt.optim.drop_in import Cohort, DropIn, drop_in
from funcopt.optim.rule import Definition, Hyper, Rule
from funcopt.optim.unbounded import unbounded
from funcopt.rules.muon import MuonState, scale_by_muon, scale_by_shape
from funcopt.transform import EmptyState, GradientTransformation, Params, State, Updates


def _rule(hyper: Hyper) -> Rule:
    orthogonal = scale_by_muon(
        hyper["ns_coefficients"],
        hyper["ns_steps"],
        unbounded(hyper["momentum"], 1.0),
        hyper["eps"],
        nesterov=hyper["nesterov"],
        ns_dtype=torch.bfloat16,
        eps_mode="floor",
        bias_correction=False,
    )
    by_shape = scale_by_shape(consistent_rms=0.2 if hyper["adjust_lr_fn"] == "match_rms_adamw" else None)

    def init(params: Params) -> State:
        return orthogonal.init(params).mu

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        count = torch.zeros((), dtype=torch.int32)  # torch counts no steps, and nothing here depends on them
        updates, after = orthogonal.update(updates, MuonState(count, state), params)
        return by_shape.update(updates, EmptyState(), params)[0], after.mu

    return Rule(GradientTransformation(init, update, "leafwise"), "momentum_buffer")


@drop_in
class Muon(DropIn, torch.optim.Muon):
    """`torch.optim.Muon`: the same arguments, groups, state and numbers; `compile=True` besides.

        b ← μ b + (1 - μ) g        m = (1 - μ) g + μ b, or b without `nesterov`
        θ ← (1 - γ λ) θ - γ √max(1, rows / columns) O(m)        O(m) by Newton-Schulz iteration in bfloat16

    Unlike in torch, the buffer stays as it is where it is bfloat16 itself and `nesterov` is False; torch normalises it.
    """

    definition = Definition(
        _rule, scalars=(), constants=("ns_coefficients", "ns_steps"), elementwise=False, decoupled=True
    )

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """A zero momentum buffer in the dtype of the gradient."""
        assert param.grad is not None
        return {"momentum_buffer": torch.zeros_like(param.grad)}

    def check_gradient(self, param: Tensor, group: Hyper) -> None:
        """What torch refuses at the step: complex parameters, and an iteration that makes no sense."""
        if param.is_complex():
            raise RuntimeError("Muon does not support complex parameters")
        if param.ndim != 2:
            raise ValueError(f"Muon only supports 2D parameters, got one of the size {tuple(param.shape)}.")
        if group["ns_steps"] >= 100:
            raise ValueError(f"Muon: ns_steps must be less than 100, got {group['ns_steps']}.")
        if len(group["ns_coefficients"]) != 3:
            raise ValueError(f"Muon: ns_coefficients must have exactly 3 values, got {group['ns_coefficients']}.")
        super().check_gradient(param, group)

    def _kind(self, param: Tensor, grad: Tensor) -> Hashable:
        return super()._kind(param, grad), param.ndim

    def _hyper_of(self, cohort: Cohort, hyper: Hyper) -> Hyper:
        return {**hyper, "ns_coefficients": tuple(hyper["ns_coefficients"])}
