"""The base of all imperative optimizers: torch's own base class, with checkpoints and groups that are checked."""

import difflib
import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import required as required  # where scripts import it from

KEYS_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum")


class Optimizer(torch.optim.Optimizer):
    """`torch.optim.Optimizer`, which it replaces, with these differences.

    `Optimizer(params, tx)`, with a transformation in the place of defaults, makes a `TransformationOptimizer`.

    `load_state_dict` copies the state instead of sharing it with the checkpoint; it keeps the dtypes of counters and
    other scalars; and it refuses, before anything has changed, a checkpoint of parameters with other names or shapes.
    A group whose key looks like a misspelt hyperparameter gives a warning.

    Raises:
        ValueError: `load_state_dict`: a name or a shape differs from that of the parameter in its place.
    """

    _of_transformations: ClassVar[type["Optimizer"] | None] = None  # the module that has the class fills it in

    def __new__(cls, params: Any = None, tx: Any = None, *args: Any, **options: Any) -> "Optimizer":
        given = cls is Optimizer and tx is not None and not isinstance(tx, dict)
        return super().__new__(cls._of_transformations if given and cls._of_transformations else cls)

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Torch's wrapper of `step`, for hooks and the profiler, where there is a hook or a profiler.

        Without, it does nothing but to name the step for the profiler, in 30 µs, a quarter of a small step.
        """
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            return (hooked if torch.compiler.is_compiling() or _is_watched(self) else func)(self, *args, **kwargs)

        return step

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; see `torch.optim.Optimizer.add_param_group`."""
        if isinstance(param_group, dict):
            self._check_group(param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` of this class, or of the class of torch with its name, returned."""
        places = self._places(state_dict)
        self._check_names(state_dict["param_groups"])
        for index, state in state_dict["state"].items():
            if index in places:
                self._check_state(places[index], state)
        state_dict = {**state_dict, "state": _cloned(state_dict["state"])}
        super().load_state_dict(state_dict)
        for index, state in state_dict["state"].items():
            if index in places:
                _restore_scalars(self.state[places[index]], state, places[index])

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse or warn of a group before it is added; what it may hold is the business of the classes."""
        known = (*self.defaults, *KEYS_OF_SCHEDULERS, "params", "param_names")
        for key in group:
            if key not in known and (close := difflib.get_close_matches(str(key), self.defaults, n=1, cutoff=0.8)):
                warnings.warn(
                    f"{type(self).__name__}: the group key {key!r} is no hyperparameter and has no effect; "
                    f"did you mean {close[0]!r}?",
                    stacklevel=4,
                )

    def _check_state(self, param: Tensor, state: dict[str, Any]) -> None:
        """Refuse the loaded state of one parameter, whose tensors have its shape if they have dimensions at all."""
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != param.shape:
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict: {key!r} has the shape {tuple(value.shape)}, but the "
                    f"parameter in its place has {tuple(param.shape)}; state dicts are matched by position, so give "
                    "the parameters in the order in which they were saved."
                )

    def _check_names(self, saved_groups: list[dict[str, Any]]) -> None:
        for number, (group, saved) in enumerate(zip(self.param_groups, saved_groups)):
            names, saved_names = group.get("param_names"), saved.get("param_names")
            if names is None or saved_names is None or len(names) != len(saved_names):
                continue
            for name, saved_name in zip(names, saved_names):
                if name != saved_name:
                    raise ValueError(
                        f"{type(self).__name__}.load_state_dict: group {number} was saved with the parameter "
                        f"{saved_name!r} where this optimizer has {name!r}; give the parameters in the saved order, "
                        "or delete 'param_names' from the state dict to load by position."
                    )

    def _places(self, state_dict: dict[str, Any]) -> dict[Any, Tensor]:
        """The parameter that each index of the state dict stands for."""
        places: dict[Any, Tensor] = {}
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            places.update(zip(saved["params"], group["params"]))
        return places


def _is_watched(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cloned(item) for item in value)
    return value


def _restore_scalars(state: dict[str, Any], saved: dict[str, Any], param: Tensor) -> None:
    """Give scalars and integer tensors their saved dtypes back, which torch casts to that of the parameter.

    `step` is left as torch makes it: in float32 on the parameter's device for capturable and fused groups.
    """
    for key, value in saved.items():
        if not isinstance(value, Tensor) or key == "step" or value.is_complex():
            continue
        if value.ndim == 0 or not value.is_floating_point():
            state[key] = value.to(param.device)
