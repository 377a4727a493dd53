"""The base of the drop-in classes: hyperparameters and state as torch.optim keeps them, the update a pure rule."""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from funcopt.optim.in_place import PART, Row, run_tape, update_elementwise, write, written
from funcopt.optim.optimizer import Optimizer
from funcopt.optim.readers import rates_before
from funcopt.optim.rule import Definition, Hyper, Recipe, Scalars, Update, compiled, recorded, updated
from funcopt.optim.scaling import unscale

Class = TypeVar("Class", bound=type)


class Cohort(NamedTuple):
    """Parameters that one update can serve, and their states; `fresh` if the states were made just now."""

    params: list[Tensor]
    states: list[dict[str, Any]]
    fresh: bool


class DropIn(Optimizer):
    """What the drop-in classes have in common; each of them derives from torch's class of its name as well.

    Torch's class checks the hyperparameters, and gives groups, defaults and checkpoints their format. Ours adds its
    `definition`, of which the pure update is made, and the layout of its state. `compile=True`, or a dict of options
    for `torch.compile`, runs the update as a compiled function that writes into parameters and state.
    """

    definition: ClassVar[Definition]

    def __init__(self, params: Any, *args: Any, compile: bool | dict[str, Any] = False, **kwargs: Any) -> None:
        if not isinstance(compile, (bool, dict)):
            raise TypeError(f"{type(self).__name__}: compile must be a bool or a dict of options, got {compile!r}.")
        self._compile = compile
        super().__init__(params, *args, **kwargs)

    def new_state(self, param: Tensor, group: Hyper) -> dict[str, Any]:
        """The state of a parameter before its first step, in torch's order and dtypes."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step. A `closure` is evaluated before, with gradients enabled, and its value returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.state and not torch.compiler.is_compiling() and (rates := rates_before()) is not None:
            self._init_state([{**group, "lr": rate} for group, rate in zip(self.param_groups, rates)])
            return loss
        with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))):
            for group in self.param_groups:
                self._step_group(group)
        return loss

    def init_state(self) -> None:
        """Make the states that the first step would make, where they are missing, without a step.

        Training goes on as if this had not been called.
        """
        self._init_state(self.param_groups)

    def check_gradient(self, param: Tensor, group: Hyper) -> None:
        """Refuse what the rule cannot use, before anything has changed."""
        name = type(self).__name__
        if param.grad is not None and param.grad.is_sparse:
            raise RuntimeError(f"{name} does not support sparse gradients")
        if group.get("fused") and (not param.is_floating_point() or param.device.type == "meta"):
            raise RuntimeError(
                f"{name}: `fused=True` requires all the params to be floating point Tensors of a supported device, "
                f"got {param.dtype} on {param.device.type}."
            )
        if group.get("capturable") and param.device.type == "cpu" and not torch.compiler.is_compiling():
            raise AssertionError(
                f"{name}: if capturable=True, params must be on supported devices: ['cuda', 'xpu', 'hpu', "
                "'privateuse1', 'xla'], got cpu."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compile": self._compile}

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse values that torch's class refuses in its constructor."""
        super()._check_group(group)
        own = {key: group[key] for key in self.defaults if key in group}
        if not own:
            return
        torch_class = _torch_class(type(self))
        accepted = inspect.signature(torch_class).parameters
        values = {key: value for key, value in {**self.defaults, **own}.items() if key in accepted}
        torch_class([torch.zeros(1, 1)], **values)

    @torch.no_grad()
    def _init_state(self, groups: Iterable[Hyper]) -> None:
        for group in groups:
            keys = frozenset(self.definition.keys({key: _squeezed(group[key]) for key in self.defaults}))
            for param in group["params"]:
                if param.requires_grad:
                    given, param.grad = param.grad, torch.zeros_like(param) if param.grad is None else param.grad
                    try:
                        self._complete_state(param, group, keys)
                    finally:
                        param.grad = given

    def _step_group(self, group: Hyper) -> None:
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and _is_on_host(found_inf):
            if found_inf.item():
                return
            found_inf = None
        kinds: dict[Any, list[Tensor]] = {}
        for param in group["params"]:
            if (grad := param.grad) is not None:
                kinds.setdefault(self._kind(param, grad), []).append(param)
        if not kinds:
            return
        for params in kinds.values():
            self.check_gradient(params[0], group)
        hyper = {key: _squeezed(group[key]) for key in self.defaults if key in group}  # loading adds a default
        if (scale := getattr(self, "grad_scale", None)) is not None:
            unscale([p.grad for params in kinds.values() for p in params if p.grad is not None], scale, found_inf)
        hyper["found_inf"] = found_inf
        recipe = self.definition.recipe(hyper)
        keys = frozenset(recipe.made.keys)
        for cohort in [cohort for params in kinds.values() for cohort in self._cohorts(params, group, keys)]:
            own = self._hyper_of(cohort, hyper)
            self._step_cohort(cohort, own, recipe if own is hyper else self.definition.recipe(own))

    def _kind(self, param: Tensor, grad: Tensor) -> Hashable:
        """What parameters have in common that one update serves, and one check."""
        return param.dtype, grad.dtype, grad.layout, param.device, type(param), type(grad)

    def _cohorts(self, params: Sequence[Tensor], group: Hyper, keys: frozenset[str]) -> Iterable[Cohort]:
        """Parts of the parameters, which are of one kind, that are alike in their 0-d states as well.

        What is missing of their states is made here.
        """
        if not keys and not self.definition.scalars:
            return [Cohort(list(params), [{} for _ in params], False)]
        cohorts: dict[Hashable, Cohort] = {}
        readable = not torch.compiler.is_compiling()
        scalars = self.definition.scalars
        for param in params:
            state, fresh = self.state.get(param), False
            if state is None or not self._is_complete(param, state, keys) or group.get("differentiable"):
                fresh = self._complete_state(param, group, keys) and self.definition.fresh
                state = self.state.get(param, {})
            numbers = [_value(state[key]) if readable else id(state[key]) for key in scalars if key in state]
            cohort = cohorts.get(kind := (fresh, *numbers))
            if cohort is None:
                cohort = cohorts[kind] = Cohort([], [], fresh)
            cohort.params.append(param)
            cohort.states.append(state)
        return cohorts.values()

    def _is_complete(self, param: Tensor, state: dict[str, Any], keys: frozenset[str]) -> bool:
        """Whether nothing is missing of the state."""
        return state.keys() >= keys and bool(state or not keys)

    def _complete_state(self, param: Tensor, group: Hyper, keys: frozenset[str]) -> bool:
        """Make what is missing of the state: all of it at the first step, or what was switched on later."""
        state = self.state.get(param)
        if state is not None and self._is_complete(param, state, keys):
            if group.get("differentiable") and getattr(state.get("step"), "requires_grad", False):
                raise RuntimeError(
                    f"{type(self).__name__}: `requires_grad` is not supported for `step` in differentiable mode."
                )
            return False
        made = self.new_state(param, group)
        for key, value in made.items():
            self.state[param].setdefault(key, value)
        return bool(made)

    def _hyper_of(self, cohort: Cohort, hyper: Hyper) -> Hyper:
        """The hyperparameters of a cohort."""
        return {**hyper, "fresh": cohort.fresh} if self.definition.fresh else hyper

    def _step_cohort(self, cohort: Cohort, hyper: Hyper, recipe: Recipe) -> None:
        params, states, _ = cohort
        rows = [[param, param.grad, *[state[key] for key in recipe.own]] for param, state in zip(params, states)]
        scalars = {key: states[0][key] for key in self.definition.scalars if key in states[0]}
        if hyper.get("differentiable"):
            after = self._write_differentiably(hyper, scalars, rows, recipe.own)
        else:
            after = self._write(hyper, scalars, [*map(real, rows)] if params[0].is_complex() else rows, recipe)
        for key, value in after.items():
            if value.requires_grad:
                for state in states:
                    state[key].copy_(value)
            else:
                write([state[key] for state in states], [value] * len(states))

    def _write(self, hyper: Hyper, scalars: Scalars, rows: Sequence[Row], recipe: Recipe) -> Scalars:
        """Write the new values into the rows, and return those of the scalars."""
        elementwise = self.definition.elementwise and all(map(_is_plain, rows[0])) and not torch.compiler.is_compiling()
        if elementwise and not self._compile and _is_written_here(rows[0], (*recipe.numbers, *scalars.values())):
            found = recorded(self.definition, recipe, scalars, rows[0])
            if found is not None:
                tape, moved, numbers = found
                run_tape(tape, numbers, rows, self.__dict__.setdefault("_room", {}))  # which no copy takes along
                return {key: torch.full((), value, dtype=torch.float64) for key, value in zip(scalars, moved)}
        update: Update = functools.partial(updated, self.definition, hyper, made=recipe.made)
        if self._compile:
            update = compiled(self.definition, recipe, self._compile if isinstance(self._compile, dict) else {})
        after: Scalars = {}

        def rule(row: Row) -> list[Tensor]:
            nonlocal after
            after, (new,) = update(scalars, [row])
            return new

        if elementwise:
            update_elementwise(rule, rows, part=None if self._compile else PART)
            return after or updated(self.definition, hyper, scalars, rows[:1])[0]  # a step of no numbers counts
        after, values = update(scalars, rows)
        for row, new in zip(rows, values):
            write(written(row), new)
        return after

    def _write_differentiably(
        self, hyper: Hyper, scalars: Scalars, rows: Sequence[Row], keys: Sequence[str]
    ) -> Scalars:
        """Like `_write`, recorded by autograd: states are replaced, since their old values may be needed."""
        before = [[row[0].clone(), *row[1:]] for row in rows]
        scalars = {key: value.clone() for key, value in scalars.items()}  # which are overwritten
        after, values = updated(self.definition, hyper, scalars, [real(row) for row in before])
        for row, new in zip(rows, values):
            new = [torch.view_as_complex(value) for value in new] if row[0].is_complex() else new
            row[0].copy_(new[0])
            self.state[row[0]].update(zip(keys, new[1:]))
        return after


def drop_in(cls: Class) -> Class:
    """Decorate a drop-in class: its signature is that of torch's class, with `compile` added."""
    compile = inspect.Parameter("compile", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool | dict)
    signature = inspect.signature(_torch_class(cls))
    cls.__signature__ = signature.replace(parameters=[*signature.parameters.values(), compile])  # type: ignore[attr-defined]
    return cls


def scalar_state(param: Tensor, group: Hyper, value: float = 0.0) -> Tensor:
    """A 0-d state as torch makes it: on the host, unless the group is capturable or fused; float32, or the default."""
    on_device = bool(group.get("capturable") or group.get("fused"))
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    dtype = torch.float64 if wide else torch.float32
    return torch.full((), value, dtype=dtype, device=param.device if on_device else "cpu")


def _torch_class(cls: type) -> type:
    return next(base for base in cls.__mro__ if base.__module__.startswith("torch.optim"))


def _squeezed(value: Any) -> Any:
    return value.squeeze() if isinstance(value, Tensor) and value.ndim else value


def real(row: Row) -> Row:
    """The row with complex tensors seen as pairs of reals, which is how torch.optim treats them."""
    sparse = row[1].is_sparse
    return [torch.view_as_real(tensor) for tensor in row] if row[0].is_complex() and not sparse else row


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_sparse


def _is_written_here(row: Row, numbers: Iterable[Any]) -> bool:
    """Whether tensors are written and numbers can be read here and now: on the host, and outside of transforms."""
    on_host = row[0].is_cpu and all(number.is_cpu for number in numbers if isinstance(number, Tensor))
    return on_host and torch._C._functorch.maybe_current_level() is None


def _value(scalar: Tensor) -> Hashable:
    return scalar.item() if type(scalar) is Tensor and scalar.is_cpu else id(scalar)


def _is_on_host(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
