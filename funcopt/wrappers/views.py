"""The parameters to train with and those to evaluate with, for optimizers that tell them apart."""

from typing import Any

from torch import Tensor

from funcopt import tree
from funcopt.transform import Params, State


def eval_params(state: State, params: Params) -> Params:
    """The parameters to evaluate with, from those that are trained (those at which gradients are taken).

    `lookahead`, `ema_params`, `swa` and `schedule_free` evaluate with others than they train; with any other state
    the result is a copy of `params`. The state may be nested in any way, in chains, partitions, masks, accumulation;
    leaves that are masked out are kept. The result has the dtypes of `params` and shares no memory with an argument.

    What is asked is a *view*: a part of the state whose class has a method `eval_params(self, params)`, which returns
    a tree like `params` with `MaskedNode` where it has nothing to say, and perhaps its inverse, `train_params`. Of
    views inside of each other the outermost is asked; ask the inner one by its own state. A wrapper that gives its
    inner transformation another tree (one vector, say) belongs inside of an average, not around it.

    Raises:
        ValueError: two views that are not inside of each other see the same leaf, or the state is of other params.

    >>> optimizer = chain(clip_by_global_norm(1.0), ema_params(sgd(0.1), decay=0.9))
    >>> params = {"w": torch.zeros(2)}
    >>> averages = eval_params(optimizer.init(params), params)
    """
    return _seen("eval_params", _views(state), params)


def train_params(state: State, evaluated: Params) -> Params:
    """The parameters to go on training with, from those of `eval_params`: its inverse, where there is one.

    For `schedule_free` there is one. What an average was made of does not follow from it: keep the params that are
    trained. Without a view the result is a copy of `evaluated`.

    Raises:
        ValueError: a view in the state has no way back, or as for `eval_params`.
    """
    views = _views(state)
    for path, view in views:
        if not hasattr(type(view), "train_params"):
            raise ValueError(
                f"train_params: what is trained does not follow from what {_name(path, view)} evaluates with; "
                "keep the params of the training loop, and evaluate with a copy: eval_params(state, params)."
            )
    return _seen("train_params", views, evaluated)


def has_view(state: State) -> bool:
    """Whether a state tells parameters to evaluate with from those that are trained."""
    return bool(_views(state))


def _views(state: State, path: str = "") -> list[tuple[str, Any]]:
    """The outermost views in a state, each with its path."""
    if hasattr(type(state), "eval_params"):
        return [(path, state)]
    found = []
    for name, part in (tree.children(state) or {}).items():
        found += _views(part, f"{path}.{name}" if path else name)
    return found


def _seen(method: str, views: list[tuple[str, Any]], params: Params) -> Params:
    """`params` with the leaves that views give in place of their own."""
    leaves, structure = tree.flatten(params)
    seen: list[Tensor | None] = [None] * len(leaves)
    owners: list[str | None] = [None] * len(leaves)
    for path, view in views:
        for i, part in enumerate(_ask(method, path, view, params)):
            if part is None or isinstance(part, tree.MaskedNode):
                continue
            if owners[i] is not None:
                raise ValueError(
                    f"{method}: both {owners[i]} and {_name(path, view)} have parameters for the leaf "
                    f"{tree.leaves_with_path(params)[i][0]!r}; pass the state of the one that you mean."
                )
            seen[i], owners[i] = part, _name(path, view)
    return tree.unflatten([_copy(leaf, part) for leaf, part in zip(leaves, seen)], structure)


def _ask(method: str, path: str, view: Any, params: Params) -> list[Any]:
    """What a view gives for every leaf of `params`."""
    leaves, structure = tree.flatten(params)
    try:
        parts = tree.leaves_up_to(structure, getattr(view, method)(params))
    except ValueError as error:
        raise ValueError(f"{method}: {_name(path, view)} is the state of other params. {error}") from error
    for leaf, part in zip(leaves, parts):
        if isinstance(leaf, Tensor) and isinstance(part, Tensor) and leaf.shape != part.shape:
            raise ValueError(
                f"{method}: {_name(path, view)} is the state of other params: "
                f"a leaf of shape {tuple(part.shape)} for one of shape {tuple(leaf.shape)}."
            )
    return parts


def _name(path: str, view: Any) -> str:
    return f"{type(view).__name__} at {path!r}" if path else f"the {type(view).__name__}"


def _copy(leaf: Tensor | None, seen: Tensor | None) -> Tensor | None:
    if leaf is None:
        return None
    return leaf.clone() if seen is None else seen.to(leaf.dtype, copy=True)
