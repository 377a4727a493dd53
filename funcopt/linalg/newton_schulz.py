"""Newton-Schulz iteration: the nearest matrix with orthonormal rows or columns, by products alone."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from funcopt.checks import check_choice, check_integer, check_within
from funcopt.numerics import EpsMode

Coefficients: TypeAlias = Sequence[float | Tensor]
"""(a, b, c) of the polynomial `a x + b x³ + c x⁵` that one step applies to the singular values."""
Preconditioning: TypeAlias = Literal["frobenius", "spectral", "aol", "schatten"]

STANDARD: Coefficients = (3.4445, -4.7750, 2.0315)
DION: Sequence[Coefficients] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
PRESETS = {"standard": STANDARD, "dion": DION}


def newton_schulz(
    matrices: Tensor,
    coefficients: Coefficients | Sequence[Coefficients] | str = STANDARD,
    steps: int = 5,
    eps: float | Tensor = 1e-8,
    dtype: torch.dtype | None = None,
    *,
    preconditioning: Preconditioning = "frobenius",
    eps_mode: EpsMode = "add",
) -> Tensor:
    """Bring all singular values near 1: `U S Vᴴ` becomes about `U Vᴴ` (Jordan 2024, https://kellerjordan.github.io/posts/muon/).

        X ← X / (‖X‖ + ε)        then `steps` times: A = X Xᴴ,  X ← a X + (b A + c A²) X

    Matrices are the last two axes, others a batch. `coefficients` are one triple (a, b, c) for all steps, or one for
    each (of more the first `steps` count), or the name of a set: "standard" (Jordan's) or "dion". The standard ones do
    not converge: singular values end within about 0.7 and 1.2, the smallest lower. `dtype` is that of the iteration of
    real matrices; the result has that of `matrices`. With `eps_mode="floor"`, the norm is max(‖X‖, ε), as in
    torch.optim.Muon.

    What makes singular values at most 1 first: the norm "frobenius" or "spectral" (an SVD); or within the first step
    "schatten" (Grishina et al. 2025, https://arxiv.org/abs/2506.10935), which leaves them larger, or "aol" (Boissin et
    al. 2025, https://arxiv.org/abs/2512.04632), which also scales each row for itself, so that the limit is another
    matrix than `U Vᴴ`. Zeros stay zeros.

    >>> newton_schulz(torch.tensor([[3.0, 0.0], [0.0, -3.0]])).round(decimals=2)
    tensor([[ 1.1100,  0.0000],
            [ 0.0000, -1.1100]])

    Raises:
        ValueError: fewer than two axes, fewer triples than steps, or an unknown name.
    """
    if matrices.ndim < 2:
        raise ValueError(f"newton_schulz: matrices must have two axes or more, got shape {tuple(matrices.shape)}.")
    triples = check_coefficients("newton_schulz", coefficients, steps)
    check_within("newton_schulz", "[0, inf)", eps=eps)
    check_choice("newton_schulz", ("frobenius", "spectral", "aol", "schatten"), preconditioning=preconditioning)
    check_choice("newton_schulz", ("add", "floor"), eps_mode=eps_mode)
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices if dtype is None or matrices.is_complex() else matrices.to(dtype)
    x = x.mH if tall else x
    if preconditioning in ("frobenius", "spectral"):
        x = x / _norm(x, preconditioning, eps, eps_mode)
    for step, triple in enumerate(triples):
        gram = x @ x.mH
        if step == 0 and preconditioning in ("aol", "schatten"):
            x, gram = _rescaled(x, gram, preconditioning)
        x = _apply(triple, x, gram)
    return (x.mH if tall else x).to(matrices.dtype)


def check_coefficients(
    function: str, coefficients: Coefficients | Sequence[Coefficients] | str, steps: int
) -> list[Coefficients]:
    """The triple of each step.

    Raises:
        ValueError: they are no triples, or fewer than `steps`, or the name is unknown.
    """
    check_integer(function, 0, steps=steps)
    given: Any = coefficients
    if isinstance(coefficients, str):
        check_choice(function, tuple(PRESETS), coefficients=coefficients)
        given = PRESETS[coefficients]
    one_for_each = all(isinstance(triple, (tuple, list)) for triple in given)
    triples = list(given[:steps]) if one_for_each else [given] * steps
    if any(len(triple) != 3 for triple in triples):
        raise ValueError(f"{function}: coefficients must be three numbers, or three for each step, got {coefficients}.")
    if len(triples) < steps:
        raise ValueError(f"{function}: coefficients must be given for all {steps} steps, got {len(triples)} triples.")
    return triples


def _norm(x: Tensor, kind: str, eps: float | Tensor, eps_mode: str) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(x, "fro" if kind == "frobenius" else 2, keepdim=True)
    return norm + eps if eps_mode == "add" else norm.clamp(min=eps)


def _rescaled(x: Tensor, gram: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """X and its Gram matrix with rows scaled so that no singular value is above 1."""
    if kind == "aol":
        scale = gram.abs().sum(-1, keepdim=True).clamp(min=1e-8).rsqrt()
    else:
        scale = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True).clamp(min=1e-8).rsqrt()
    return scale * x, scale * gram * scale.mT


def _apply(triple: Coefficients, x: Tensor, gram: Tensor) -> Tensor:
    """One step: `a X + (b A + c A²) X`."""
    a, b, c = triple
    return _add_product(a, x, 1.0, _add_product(b, gram, c, gram, gram), x)


def _add_product(beta: float | Tensor, x: Tensor, alpha: float | Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`beta * x + alpha * left @ right`; in one pass, rounded once, where the factors are numbers."""
    if isinstance(beta, Tensor) or isinstance(alpha, Tensor) or x.ndim > 3:
        return beta * x + alpha * (left @ right)
    add = torch.addmm if x.ndim == 2 else torch.baddbmm
    return add(x, left, right, beta=beta, alpha=alpha)
