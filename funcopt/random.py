"""Random numbers as pure functions of a key: the same key gives the same numbers, and nothing else changes.

A key is an int64 tensor of shape (2,): two words in [0, 2³²). Threefry-2x32 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3", https://doi.org/10.1145/2063384.2063405) encrypts the counters 0, 1, 2, ... under it, and
the result is the stream. There is no generator to advance: never draw twice from one key, `split` it first.

Keys, bits and uniform numbers equal those of `jax.random` with its default `jax_threefry_partitionable=True`. Every
function takes one key; `torch.func.vmap` gives it many. Words are int64 because torch hardly computes on uint32.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor

from funcopt.numerics import real_dtype, scalar_dtype

Shape: TypeAlias = tuple[int, ...]

_WORD = 0xFFFFFFFF
_PARITY = 0x1BD11BDA  # of the key schedule: no key makes all three of its words zero
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry2x32(key: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt pairs of 32-bit words under `key`, element by element: Threefry-2x32, 20 rounds (Salmon et al. 2011).

        x₀ ← x₀ + x₁,   x₁ ← (x₁ rotated left) ⊕ x₀   in each round;   both += a word of the key after every fourth

    `x0`, `x1` and both results are int64 tensors with entries in [0, 2³²).
    """
    k0, k1 = key.unbind(0)
    words = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + k0, (x1 + k1) & _WORD
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1  # what rises above 32 bits here does not come back down; it is cut off at the end
            x1 = _keep((((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0) & _WORD)
        x0 = x0 + words[(group + 1) % 3]
        x1 = (x1 + words[(group + 2) % 3] + (group + 1)) & _WORD
    return x0 & _WORD, x1


def _keep(x: Tensor) -> Tensor:
    """Let compiled code compute `x` once rather than once for each of the places that use it.

    Inductor substitutes the expression of x₁ wherever it occurs, three times in a round, and so triples the code from
    round to round: thirty times the compile time (100 s for one draw), and twice the run time. A strided view must have
    a buffer to look at, which fusion then removes again. Outside of a compiled graph nothing happens.
    """
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x


def key(seed: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """The key of a seed: its high and its low 32 bits.

    `seed` is an int in [-2⁶³, 2⁶³) or a 0-d integer tensor; a negative one counts modulo 2⁶⁴. The key is on `device`,
    by default where the seed is. jax cuts seeds to 32 bits unless `jax_enable_x64` is set.

    >>> key(0)
    tensor([0, 0])

    Raises:
        TypeError: `seed` is neither an int nor an integer tensor.
        ValueError: an int is out of range, or a tensor has dimensions.
    """
    return _from_seed("key", "seed", seed, device)


def as_key(function: str, key: int | Tensor) -> Tensor:
    """The argument `key` of the factory `function`: a key as it is, or the key of a seed.

    Raises:
        TypeError, ValueError: it is neither. The message names the factory.
    """
    if isinstance(key, Tensor) and key.dim() > 0:
        _check_key(function, key)
        return key
    return _from_seed(function, "key", key)


def _from_seed(function: str, name: str, seed: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    word = _integer(function, name, seed, -(2**63), 2**63, device)
    return torch.stack(((word >> 32) & _WORD, word & _WORD))


def split(key: Tensor, num: int | Shape = 2) -> Tensor:
    """`num` keys from one, which has then had its use: shape (num, 2), or (*num, 2) for a tuple.

    >>> next_key, subkey = split(key(0))

    Raises:
        TypeError: `key` is no key, or `num` neither an int nor a tuple of ints.
        ValueError: `key` has another shape than (2,), or `num` is negative.
    """
    _check_key("split", key)
    shape = num if isinstance(num, tuple) else (num,)
    _check_sizes("split", "num", shape)
    return torch.stack(threefry2x32(key, *_counters(shape, key.device)), -1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A key from a key and a number, such as a step count.

    `data` is an int in [0, 2³²), or a 0-d integer tensor, which counts modulo 2³². In compiled code let a number that
    changes be a tensor: an int compiles anew. As in jax, `fold_in(key, i)` equals `split(key, n)[i]`: do not use both
    on one key.

    Raises:
        TypeError: `key` is no key, or `data` neither an int nor an integer tensor.
        ValueError: `key` has another shape than (2,), an int is out of range, or a tensor has dimensions.
    """
    _check_key("fold_in", key)
    word = _integer("fold_in", "data", data, 0, 2**32, key.device) & _WORD
    return torch.stack(threefry2x32(key, torch.zeros_like(word), word))


def bits(key: Tensor, shape: Shape = (), width: int = 32) -> Tensor:
    """Random bits, as int64: uniform in [0, 2ʷ) for `width` w = 8, 16 or 32.

    With `width` 64 the highest bit is the sign: uniform in [-2⁶³, 2⁶³).

    Raises:
        TypeError: `key` is no key, or `shape` no tuple of ints.
        ValueError: `key` has another shape than (2,), a size is negative, or the width is another.
    """
    _check_key("bits", key)
    _check_sizes("bits", "shape", shape)
    if width not in (8, 16, 32, 64):
        raise ValueError(f"bits: width must be 8, 16, 32 or 64, got width={width!r}.")
    high, low = threefry2x32(key, *_counters(shape, key.device))
    mixed: Tensor = (high << 32) | low if width == 64 else (high ^ low) & (2**width - 1)
    return mixed


def uniform(
    key: Tensor,
    shape: Shape = (),
    dtype: torch.dtype = torch.float32,
    minval: float | Tensor = 0.0,
    maxval: float | Tensor = 1.0,
) -> Tensor:
    """Random numbers, uniform in [minval, maxval).

        minval + (maxval - minval) m / 2ᵖ,    m uniform in {0, ..., 2ᵖ - 1},    p = the mantissa bits of `dtype`

    `minval` and `maxval` are rounded to `dtype`; tensors broadcast to `shape`. Equal to jax's, but for the last bit in
    float64 outside of [0, 1).

    Raises:
        TypeError: `key` is no key, `shape` no tuple of ints, or `dtype` not float16, bfloat16, float32 or float64.
        ValueError: `key` has another shape than (2,), a size is negative, or a bound does not broadcast to `shape`.
    """
    fraction = _fraction("uniform", key, shape, dtype)
    low, high = (torch.as_tensor(bound, dtype=dtype, device=key.device) for bound in (minval, maxval))
    for name, bound in (("minval", low), ("maxval", high)):
        _check_broadcast("uniform", name, bound, shape)
    if dtype == torch.float32:  # XLA rounds product and sum at once, as float64 does; half precisions, each by itself
        fraction = fraction.to(scalar_dtype(key.device))
    return torch.maximum((fraction * (high - low) + low).to(dtype), low)


def _check_broadcast(function: str, name: str, bound: Tensor, shape: Shape) -> None:
    fits = all(given in (1, wanted) for given, wanted in zip(reversed(bound.shape), reversed(shape)))
    if bound.dim() > len(shape) or not fits:
        given = tuple(bound.shape)
        raise ValueError(f"{function}: {name} must broadcast to shape={tuple(shape)}, got a tensor of shape {given}.")


# The random bits drawn for a number in [0, 1), and how many of them the mantissa keeps.
_PRECISION = {torch.float16: (16, 10), torch.bfloat16: (8, 7), torch.float32: (32, 23), torch.float64: (64, 52)}


def _fraction(function: str, key: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Numbers in {0, 1, ..., 2ᵖ - 1} / 2ᵖ, where p is the number of mantissa bits of `dtype`."""
    _check_key(function, key)
    _check_sizes(function, "shape", shape)
    if dtype not in _PRECISION:
        raise TypeError(
            f"{function}: dtype must be one of {', '.join(map(str, _PRECISION))}"
            f"{', torch.complex64, torch.complex128' if function == 'normal' else ''}, got dtype={dtype}."
        )
    width, kept = _PRECISION[dtype]
    mantissa = (bits(key, shape, width) >> (width - kept)) & ((1 << kept) - 1)  # >> copies the sign of 64 bits
    return mantissa.to(dtype) / (1 << kept)


def normal(key: Tensor, shape: Shape = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers from the standard normal distribution, by inversion.

        z = √2 erf⁻¹(u),    u uniform in (-1, 1)

    For a complex `dtype`, real and imaginary part have variance ½ each. float32 is within 1e-6 of jax's.

    Raises:
        TypeError: `key` is no key, `shape` no tuple of ints, or `dtype` no floating-point or complex dtype (see
            `uniform`).
        ValueError: `key` has another shape than (2,), or a size is negative.
    """
    if dtype in (torch.complex64, torch.complex128):
        _check_key("normal", key)
        real, imaginary = (normal(part, shape, real_dtype(dtype)) for part in split(key).unbind(0))
        return torch.complex(real, imaginary) / math.sqrt(2)
    # The odd multiples of the half spacing: -1 + ε/2, -1 + 5ε/2, ..., 1 - 3ε/2; each is exact in `dtype`.
    u = 2 * _fraction("normal", key, shape, dtype) - (1 - torch.finfo(dtype).eps / 2)
    return _inverse_erf(u) * torch.full((), math.sqrt(2), dtype=dtype, device=key.device)


# Coefficients from Giles 2012, "Approximating the erfinv function", for single precision: the highest power first.
# fmt: off
_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)
_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)
# fmt: on


def _inverse_erf(x: Tensor) -> Tensor:
    """erf⁻¹(x): torch's own in float64, else XLA's approximation in float32.

    XLA cancels in 1 - x² and misses √2 erf⁻¹(x) by up to 2.2e-5 near |x| = 1, where torch.erfinv misses it by 5e-7.
    Its formula is followed all the same, so that one key gives one noise in both libraries: to 9.6e-7 on all 2²³ values
    that `normal` passes in. As a distribution either is as good.
    """
    if x.dtype == torch.float64:
        return torch.erfinv(x)
    wide = x.to(torch.float32)
    w = -torch.log1p(-wide * wide)
    scale = torch.where(w < 5, _polynomial(_CENTRE, w - 2.5), _polynomial(_TAIL, w.sqrt() - 3))
    return (scale * wide).to(x.dtype)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def rademacher(key: Tensor, shape: Shape = (), dtype: torch.dtype = torch.int32) -> Tensor:
    """Random signs: -1 or 1, with probability ½ each.

    Equal to jax's without `jax_enable_x64`, which draws other bits.

    Raises:
        TypeError: `key` is no key, `shape` no tuple of ints, or `dtype` cannot hold -1.
        ValueError: `key` has another shape than (2,), or a size is negative.
    """
    _check_key("rademacher", key)
    _check_sizes("rademacher", "shape", shape)
    if not dtype.is_signed:
        raise TypeError(f"rademacher: dtype must be able to hold -1, got dtype={dtype}.")
    return (1 - 2 * (bits(key, shape) >> 31)).to(dtype)


def _counters(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """The high and the low words of 0, 1, 2, ... in the order of rows."""
    index = torch.arange(math.prod(shape), device=device).reshape(shape)
    return index >> 32, index & _WORD


def _integer(
    function: str, name: str, value: int | Tensor, low: int, high: int, device: torch.device | str | None
) -> Tensor:
    """`value`, an int in [low, high) or a 0-d integer tensor, as a 0-d int64 tensor."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{function}: {name} must be an integer, got a tensor of {value.dtype}.")
        if value.dim() > 0:
            raise ValueError(
                f"{function}: {name} must be a 0-d tensor, got the shape {tuple(value.shape)}. "
                "Use torch.func.vmap for several at once."
            )
        return value.to(device=device, dtype=torch.int64)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be an int or a 0-d integer tensor, got {name}={value!r}.")
    if not low <= value < high:
        raise ValueError(f"{function}: {name} must lie in [{low}, {high}), got {name}={value!r}.")
    return torch.full((), value, dtype=torch.int64, device=device)


def _check_key(function: str, key: Tensor) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        given = f"a tensor of {key.dtype}" if isinstance(key, Tensor) else f"key={key!r}"
        raise TypeError(
            f"{function}: key must be an int64 tensor made by funcopt.random.key, split or fold_in, got {given}."
        )
    if key.shape != (2,):
        raise ValueError(
            f"{function}: key must have the shape (2,), got {tuple(key.shape)}. Use torch.func.vmap for several keys."
        )


def _check_sizes(function: str, name: str, sizes: Shape) -> None:
    if not isinstance(sizes, (tuple, list)) or any(isinstance(n, bool) or not isinstance(n, int) for n in sizes):
        raise TypeError(f"{function}: {name} must be a tuple of ints, got {name}={sizes!r}.")
    if any(n < 0 for n in sizes):
        raise ValueError(f"{function}: {name} must not be negative, got {name}={tuple(sizes)!r}.")
