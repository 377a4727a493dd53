"""Any functional transformation as a `torch.optim.Optimizer`."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import required

from funcopt import tree
from funcopt.checks import check_choice
from funcopt.optim import checkpoints
from funcopt.optim.optimizer import Optimizer
from funcopt.optim.pickling import from_portable, to_portable
from funcopt.optim.readers import is_called_for_states
from funcopt.optim.recipe import Recipe, fixed_recipe, recipe_of_transformation
from funcopt.optim.runs import as_tree
from funcopt.optim.states import Group, States
from funcopt.optim.stepper import How, Stepper
from funcopt.optim.views import Held, switch_to_evaluation, switch_to_training
from funcopt.transform import GradientTransformation, State
from funcopt.wrappers.hyperparams import settable_hyperparams
from funcopt.wrappers.views import eval_params, has_view

ScopeName: TypeAlias = Literal["all", "group"]
CompileOptions: TypeAlias = bool | Mapping[str, Any]


class TransformationOptimizer(Optimizer):
    """A functional transformation behind the interface of torch.optim; `Optimizer(params, tx)` makes one.

    At each step it is called as `update` would be on the tree of all parameters, a dict by their names or a list if
    they have none; a parameter whose `grad` is None is a leaf that is absent. Parameters and states are written in
    place; `p.grad` is never written. States are tensors in `opt.state[p]`, made at the first step; what belongs to all
    parameters, such as the count `step`, is under the first one.

    Hyperparameters that `inject_hyperparams` put into the state are entries of `param_groups`, read at every step:
    `learning_rate` as `lr`, and `b1` and `b2` as the pair `betas`; those with a schedule are not.

    Args:
        params: as torch.optim takes them: tensors, pairs `(name, tensor)`, or dicts, which may override entries.
        tx: the transformation.
        scope: "all" for one tree of all groups, so that a global norm is that of all parameters; "group" for a tree,
            and a count, for each group.
        compile: True, or options of `torch.compile`, for a step that is compiled and writes in place. Changed numbers
            compile nothing again; another set of parameters without a gradient does so once.
        differentiable: record the step for autograd; parameters may then be no leaves.

    `step(closure, **extra)` passes extra arguments to `update`, and the loss of the closure as `value`. Where groups
    differ in hyperparameters, there is a call of `update` for each, of which its group takes its part.

    >>> model = torch.nn.Linear(2, 1)
    >>> tx = chain(clip_by_global_norm(1.0), inject_hyperparams(adamw)(learning_rate=0.1))
    >>> optimizer = Optimizer(model.named_parameters(), tx)
    >>> optimizer.param_groups[0]["lr"]
    0.1

    Raises:
        TypeError: `tx` is no transformation.
        ValueError: what torch.optim and the transformation refuse.
    """

    _factory: ClassVar[Callable[..., GradientTransformation] | None] = None

    def __init__(
        self,
        params: Any,
        tx: GradientTransformation,
        *,
        scope: ScopeName = "all",
        compile: CompileOptions = False,
        differentiable: bool = False,
    ) -> None:
        _check_is_transformation(tx)
        # Which hyperparameters are in the state shows with the parameters; until then there are none.
        self._begin(params, fixed_recipe(repr(tx), tx), scope, compile, differentiable)
        if settable_hyperparams(self._first_state(on_meta=True)):
            self._recipe = recipe_of_transformation(repr(tx), tx, self._first_state(on_meta=False))
            self.defaults = {**self._recipe.defaults, **self.defaults}
            for group in self.param_groups:
                self._complete(group)

    def _begin(
        self, params: Any, recipe: Recipe, scope: ScopeName, compile: CompileOptions, differentiable: bool
    ) -> None:
        name = type(self).__name__
        check_choice(name, ("all", "group"), scope=scope)
        if differentiable and compile:
            raise ValueError(f"{name}: a differentiable step cannot be compiled; leave out one of both.")
        self._recipe = recipe
        self._options: dict[str, Any] = {"scope": scope, "compile": compile}
        self._held: Held = {}
        self._stepper = Stepper()
        super().__init__(params, {**recipe.defaults, "differentiable": differentiable})
        state = self._first_state(on_meta=True)
        self._has_view = has_view(state)
        if self._factory is not None and (injected := settable_hyperparams(state)):
            raise TypeError(
                f"{name}: its factory puts {', '.join(injected)} into the state, where the entries of groups would not "
                "reach them; give as_optimizer the factory without inject_hyperparams, or Optimizer what it makes."
            )

    @torch.no_grad()
    def _first_state(self, *, on_meta: bool) -> State:
        """The state of `init`, or, with much less memory, its structure."""
        group = self.param_groups[0]
        transformation = self._recipe.make(**self._recipe.arguments(group))
        params = [param for each in self.param_groups for param in each["params"]]
        names = [name for each in self.param_groups for name in each.get("param_names", ())]
        if on_meta:
            try:
                placeholders = [torch.empty(param.shape, dtype=param.dtype, device="meta") for param in params]
                return transformation.init(as_tree(tuple(names) or None, placeholders))
            except (RuntimeError, NotImplementedError):  # it reads the numbers of params
                pass
        real = [torch.zeros((), dtype=p.dtype).expand(p.shape) if p.is_meta else p.detach() for p in params]
        return transformation.init(as_tree(tuple(names) or None, real))

    # ------------------------------------------------------------------------------------------------------- stepping

    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """One step with the gradients in `p.grad`; gives back what the closure, called before, returned.

        Args:
            closure: computes the gradients anew, and returns the loss, which `update` gets as `value`.
            extra: further arguments of `update`; trees in them have the structure that the transformation sees.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if isinstance(loss, Tensor):
                extra.setdefault("value", loss.detach())
            elif isinstance(loss, float):
                extra.setdefault("value", loss)
        if self._held:
            raise RuntimeError(
                f"{type(self).__name__}: the parameters hold the values to evaluate with; "
                "leave eval_params(), or call train(), before the step."
            )
        if not self.state and not torch.compiler.is_compiling() and is_called_for_states():
            self.init_state()
            return None
        with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
            how = self._how()
            for number, groups in enumerate(self._scopes()):
                self._stepper.step(how, groups, self.state, extra, number)
        return loss

    def _how(self) -> How:
        compile = self._options["compile"]
        options = dict(compile) if isinstance(compile, Mapping) else {} if compile else None
        return How(self._recipe, options, bool(self.defaults["differentiable"]))

    def _scopes(self, groups: list[Group] | None = None) -> list[list[Group]]:
        groups = self.param_groups if groups is None else groups
        return [groups] if self._options["scope"] == "all" else [[group] for group in groups]

    def init_state(self) -> None:
        """Make the states that the first step would make."""
        with torch.no_grad():
            for groups in self._scopes():
                self._stepper.prepare(self._how(), groups, self.state)

    def functional_state(self, group: int = 0) -> State:
        """The state as `update` gets it, for the parameters of a group; for `metrics`, say. It shares its tensors."""
        scope = self.param_groups if self._options["scope"] == "all" else [self.param_groups[group]]
        members = {*self.param_groups[group]["params"]}
        with torch.no_grad():
            for view in self._stepper.views(self._how(), scope, self.state):
                if not members.isdisjoint(view.moves.values()):
                    return view.state
        raise ValueError(f"functional_state: group {group} has no parameters that are trained.")

    # --------------------------------------------------------------------------------------------------------- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters get the state of `init` at the next step, the others keep theirs.

        Raises:
            ValueError: a hyperparameter of the group is not in its range, a parameter or a name occurs twice, or as
                torch.optim. An entry that looks like a misspelt hyperparameter gives a warning.
        """
        if isinstance(param_group, dict) and "params" in param_group:
            params = param_group["params"]
            param_group["params"] = params if isinstance(params, (Tensor, set)) else list(params)
            _check_distinct(type(self).__name__, param_group["params"], self.param_groups)
            self._complete(param_group)
        super().add_param_group(param_group)

    def _complete(self, group: dict[str, Any]) -> None:
        self._recipe.fold(group)
        self._recipe.check(group)
        for name, value in self._recipe.defaults.items():
            if value is not required:
                group.setdefault(name, value)

    # ---------------------------------------------------------------------------------------- evaluation and training

    @contextmanager
    def eval_params(self) -> Iterator[None]:
        """Within, the parameters hold the values to evaluate with: those of `funcopt.eval_params`.

        Afterwards they hold those to train with again, bit by bit. Without such a transformation nothing happens.
        """
        if self._held:
            yield
            return
        self._evaluate()
        try:
            yield
        finally:
            switch_to_training(self._held)

    @contextmanager
    def train_params(self) -> Iterator[None]:
        """Within, where `eval_params()` or `eval()` is in force, the parameters hold the values to train with."""
        if not self._held:
            yield
            return
        switch_to_training(self._held)
        try:
            yield
        finally:
            self._evaluate()

    @torch.no_grad()
    def _evaluate(self) -> None:
        if not self._has_view or not self.state:
            return
        evaluated: dict[Tensor, Tensor] = {}
        for scope in self._scopes():
            for view in self._stepper.views(self._how(), scope, self.state):
                structure = tree.flatten(view.params)[1]
                leaves = tree.leaves_up_to(structure, eval_params(view.state, view.params))
                evaluated.update({param: leaves[index] for index, param in view.moves.items()})
        switch_to_evaluation(self._held, evaluated)

    def __getattr__(self, name: str) -> Any:
        # Only optimizers that tell evaluation from training have these: Accelerate calls them where they are.
        if name == "eval" and self.__dict__.get("_has_view"):
            return functools.partial(_evaluate, self)
        if name == "train" and self.__dict__.get("_has_view"):
            return functools.partial(_train, self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As of torch.optim, without entries that no checkpoint can hold: functions such as a schedule or a mask."""
        state_dict = super().state_dict()
        groups = [checkpoints.plain_entries(group) for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load copies of states, each in the dtype that was saved, and the entries of the groups.

        Raises:
            ValueError: groups, names of parameters or shapes of states are of another model, or a hyperparameter is
                not in its range; nothing has been changed then.
        """
        found: dict[Tensor, Any] = {}

        def take_states(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            groups = state_dict["param_groups"]
            checkpoints.check_sizes(type(self).__name__, groups, self.param_groups)
            self._check_names(groups)
            completed = checkpoints.completed_groups(groups, self.param_groups)
            for group in completed:
                self._complete(group)
            found.update(checkpoints.exact_states(state_dict["state"], groups, self.param_groups))
            if any(found.values()):
                self._check_states(found, completed)
            return {**state_dict, "state": {}, "param_groups": completed}

        def put_states(optimizer: torch.optim.Optimizer) -> None:
            self.state.update(found)

        # torch would cast every tensor but `step` to the dtype of the parameter, a count in bfloat16 for one.
        taking = self.register_load_state_dict_pre_hook(take_states)
        putting = self.register_load_state_dict_post_hook(put_states, prepend=True)
        try:
            torch.optim.Optimizer.load_state_dict(self, state_dict)
        finally:
            taking.remove()
            putting.remove()

    def _check_states(self, found: Mapping[Tensor, Any], saved_groups: list[Group]) -> None:
        groups = [{**saved, "params": mine["params"]} for saved, mine in zip(saved_groups, self.param_groups)]
        expected: States = defaultdict(dict)
        with torch.no_grad():
            own = frozenset[str]().union(
                *(self._stepper.prepare(self._how(), scope, expected) for scope in self._scopes(groups))
            )
        checkpoints.check_states(type(self).__name__, found, expected, own)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: self.__dict__[name] for name in ("_recipe", "_options", "_held", "_has_view", "state")}
        groups = [
            {name: value if name == "params" else to_portable(value) for name, value in group.items()}
            for group in self.param_groups
        ]
        return {**kept, "defaults": to_portable(self.defaults), "param_groups": groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_recipe" in state:  # a copy or a pickle, not a checkpoint
            self._stepper = Stepper()
            self.defaults = from_portable(self.defaults)
            for group in self.param_groups:
                group.update({name: from_portable(value) for name, value in group.items() if name != "params"})

    def __repr__(self) -> str:
        kind, rest = super().__repr__().split("(", 1)
        return f"{kind}(\n    {self._recipe.name}{rest}" if type(self)._factory is None else f"{kind}({rest}"


Optimizer._of_transformations = TransformationOptimizer


def _check_is_transformation(tx: Any) -> None:
    if not isinstance(tx, GradientTransformation):
        remedy = "; as_optimizer makes a class of a factory" if callable(tx) else ""
        raise TypeError(f"Optimizer: tx must be a GradientTransformation, got {tx!r}{remedy}.")


def _check_distinct(name: str, params: Any, groups: list[Group]) -> None:
    """Raise ValueError where a parameter or a name is given twice, since the transformation sees them as one tree."""
    if isinstance(params, (Tensor, set)):
        return
    given = [param[1] if isinstance(param, tuple) and len(param) == 2 else param for param in params]
    tensors = [param for param in given if isinstance(param, Tensor)]
    if len({*tensors}) < len(tensors):
        raise ValueError(f"{name}: a parameter occurs twice in a group; give it once.")
    names = [param[0] for param in params if isinstance(param, tuple)]
    names += [taken for group in groups for taken in group.get("param_names", ())]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"{name}: two parameters have the name {twice!r}; names must differ.")


def _evaluate(optimizer: TransformationOptimizer) -> None:
    """Put the values to evaluate with into the parameters, until `train()`."""
    if not optimizer._held:
        optimizer._evaluate()


def _train(optimizer: TransformationOptimizer) -> None:
    """Put the values to train with back, bit by bit."""
    switch_to_training(optimizer._held)
