"""Steps recorded once: plain steps of elementwise classes on the host run from a tape, which is the pure step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import funcopt.optim
from funcopt.optim import drop_in, rule
from funcopt.optim.in_place import run_tape
from funcopt.optim.rule import recorded, updated
from funcopt.optim.tape import Tape, record
from tests.optim.classes import CASES, Case, built, give_gradients, parameters

ELEMENTWISE = [case for case in CASES if case.mine.definition.elementwise]
every_elementwise_case = pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
f64 = torch.float64


@every_elementwise_case
def test_every_plain_step_on_the_host_is_recorded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(drop_in, "recorded", lambda *given: found.append(recorded(*given)) or found[-1])
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    for step in range(2):
        give_gradients(params, step)
        optimizer.step()
    assert len(found) >= 2
    assert None not in found


def pure_step(optimizer: Any, params: list[Tensor]) -> list[list[Tensor]]:
    """What the rule of the optimizer, without a tape, makes of parameters and states, and of the scalars."""
    hyper, keys = settings(optimizer)
    states = [optimizer.state[param] for param in params]
    rows = [[p.detach().clone(), p.grad, *(s[key].clone() for key in keys)] for p, s in zip(params, states)]
    scalars = {key: states[0][key].clone() for key in optimizer.definition.scalars if key in states[0]}
    after, new = updated(optimizer.definition, hyper, scalars, rows)
    return [*new, list(after.values())]


def current(optimizer: Any, params: list[Tensor]) -> list[list[Tensor]]:
    """Parameters and states, and the scalars, in the order of `pure_step`."""
    _, keys = settings(optimizer)
    states = [optimizer.state[param] for param in params]
    rows = [[p.detach(), *(s[key] for key in keys)] for p, s in zip(params, states)]
    return [*rows, [states[0][key] for key in optimizer.definition.scalars if key in states[0]]]


def settings(optimizer: Any) -> tuple[dict[str, Any], list[str]]:
    """The hyperparameters of a second step, and the keys of the states."""
    (group,) = optimizer.param_groups
    hyper = {key: group[key] for key in optimizer.defaults} | {"found_inf": None}
    hyper |= {"fresh": False} if optimizer.definition.fresh else {}
    return hyper, optimizer.definition.recipe(hyper).own


@every_elementwise_case
def test_a_tape_is_the_pure_step(case: Case) -> None:
    params = parameters(case.name)
    optimizer = built(case.mine, params, case.kwargs)
    for step in range(4):
        give_gradients(params, step)
        if step:
            expected = pure_step(optimizer, params)
        optimizer.step()
        if step:
            torch.testing.assert_close(current(optimizer, params), expected, rtol=1e-12, atol=1e-14)


def sample(step: Any, numbers: list[Tensor], row: list[Tensor]) -> Tape:
    tape = record(step, numbers, row)
    assert tape is not None
    return tape


def run(tape: Tape, numbers: list[float], rows: list[list[Tensor]]) -> list[float]:
    scalars, needed = tape.of_scalars(*numbers)
    run_tape(tape, needed, rows, {})
    return scalars


def adam_like(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
    decay, rate, count = numbers
    param, grad, mean, square = row
    mean = decay * mean + (1 - decay) * grad
    square = square + grad**2
    return [count + 1, param - rate * (mean / (square.clamp(min=torch.finfo(f64).tiny).sqrt() + 1e-8)), mean, square]


SCALARS = [torch.tensor(0.0, dtype=f64) for _ in range(3)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = f64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    row = [torch.randn(shape, generator=generator, dtype=f64).to(dtype) for _ in range(4)]
    row[3] = row[3].abs()
    return row


@pytest.mark.parametrize("small", [0, 3, 10**6])
@pytest.mark.parametrize("part", [2, 5, 10**6])
def test_rows_of_any_shape(small: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funcopt.optim.in_place.SMALL", small)
    monkeypatch.setattr("funcopt.optim.in_place.PART", part)
    tape = sample(adam_like, SCALARS, draw(1))
    scattered = [tensor.t() for tensor in draw(4, 3, seed=1)]
    rows = [draw(seed=2), draw(1, seed=3), draw(7, seed=4), draw(2, 0, 3, seed=5), draw(3, 4, seed=6), scattered]
    numbers = [0.9, 0.1, 3.0]
    given = [torch.tensor(number, dtype=f64) for number in numbers]
    expected = [adam_like(given, [tensor.clone() for tensor in row]) for row in rows]
    gradients = [row[1].clone() for row in rows]
    assert run(tape, numbers, rows) == [4.0]
    for (param, grad, *states), (_, *new), before in zip(rows, expected, gradients):
        torch.testing.assert_close([param, *states], new, rtol=1e-13, atol=1e-15)
        assert torch.equal(grad, before)


def test_what_is_not_elementwise_is_not_recorded() -> None:
    def with_a_mean(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        return [row[0] - row[1].mean()]

    def reversed_(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        return [row[0] - row[1].flip(0)]

    def swapped(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        return [row[2] + row[1], row[0]]

    def scalar_of_an_array(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        return [row[0].sum(), row[0] + row[1]]

    assert record(with_a_mean, [], draw(2)[:2]) is None
    assert record(reversed_, [], draw(2)[:2]) is None
    assert record(swapped, [], draw(2)[:3]) is None
    assert record(scalar_of_an_array, [], draw(2)[:2]) is None


def crossed(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
    param, grad, first, second = row
    new_first = second * grad
    new_second = first * grad + second
    return [param + first - new_second, new_first, new_second]


def exchanged(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
    param, grad, first, second = row
    product = first * grad
    return [product, param * product, second.clone() * 2]


@pytest.mark.parametrize("step", [crossed, exchanged])
def test_values_that_others_still_need_are_not_overwritten(step: Any) -> None:
    row = draw(5)
    expected = step([], [tensor.clone() for tensor in row])
    run(sample(step, [], row), [], [row])
    torch.testing.assert_close([row[0], *row[2:]], expected, rtol=1e-14, atol=1e-15)


def test_sums_of_two_products_that_are_no_average() -> None:
    def step(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        a, b = numbers
        return [a * row[0] + (1 - b) * row[1], a * row[2] + (2 - a) * row[1]]

    row = draw(5)[:3]
    given = [torch.tensor(0.9, dtype=f64), torch.tensor(0.3, dtype=f64)]
    expected = step(given, [tensor.clone() for tensor in row])
    run(sample(step, given, row), [0.9, 0.3], [row])
    torch.testing.assert_close([row[0], row[2]], expected, rtol=1e-14, atol=1e-15)


def test_numbers_are_as_in_torch() -> None:
    def step(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        a, b = numbers
        chosen = torch.where(a > b, a / b, (a - b).sqrt())
        single = (a.to(torch.float32) * b.to(torch.float32)).to(f64)
        whole = a.to(torch.int32).to(f64)
        return [chosen, single, whole, torch.expm1(a).pow(b), a.clamp(min=0.5, max=2.0), row[0] + row[1]]

    tape = sample(step, SCALARS[:2], draw(1)[:2])
    for a, b in [(1.3, 0.7), (2.9, 0.0), (0.1, 3.0), (-1.5, 2.5), (800.0, 2.0), (0.0, -1.0), (math.inf, 1.0)]:
        if math.isinf(a):
            continue  # no integer
        expected = step([torch.tensor(a, dtype=f64), torch.tensor(b, dtype=f64)], draw(1)[:2])[:-1]
        found = tape.of_scalars(a, b)[0]
        torch.testing.assert_close(
            torch.tensor(found, dtype=f64), torch.stack([value.to(f64) for value in expected]), equal_nan=True
        )


def test_an_epsilon_of_zero_keeps_the_floor_under_the_root() -> None:
    """0 / √0 is 0 by the floor, which is dropped only where ε makes it void."""
    params = [torch.nn.Parameter(torch.ones(3, dtype=f64))]
    optimizer = funcopt.optim.Adam(params, lr=0.1, eps=0.0)
    params[0].grad = torch.tensor([0.0, 1.0, -2.0], dtype=f64)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.tensor([1.0, 0.9, 1.1], dtype=f64))


@pytest.mark.parametrize("eps", [1e-8, 1e-11, 1e-13, 1e-20, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, f64], ids=str)
def test_dropping_the_floor_changes_no_bit(eps: float, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    squares = torch.tensor([0.0, tiny / 4, tiny, 4 * tiny, 1e-30, 1e-12, 2.0], dtype=dtype)
    number = torch.tensor(0.0, dtype=f64)

    def step(numbers: list[Tensor], row: list[Tensor]) -> list[Tensor]:
        return [row[0].clamp(min=tiny).sqrt() + numbers[0]]

    row = [squares.clone(), torch.zeros(7, dtype=dtype)]
    tape = record(step, [number], row)
    assert tape is not None
    if eps < next(iter(tape.least.values())):
        tape = record(step, [number], row, floors=True)
    run(tape, [eps], [row])
    assert torch.equal(row[0], squares.clamp(min=tiny).sqrt() + eps)


class Operations(TorchDispatchMode):
    """The names of all operations, and the most numbers that one of them has allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        name = func._schema.name.split("::")[1]
        if name != "_local_scalar_dense":  # which reads a step count
            self.names.append(name)
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in known:
            self.largest = max(self.largest, result.numel())
        return result


def test_an_adamw_step_is_eight_operations_and_allocates_nothing_large() -> None:
    param = torch.nn.Parameter(torch.randn(200, 300))
    optimizer = funcopt.optim.AdamW([param])
    param.grad = torch.randn(200, 300)
    optimizer.step()
    with Operations() as seen:
        optimizer.step()
    arithmetic = [name for name in seen.names if name in ("lerp", "pow", "mul", "add", "sqrt", "addcdiv", "div", "sub")]
    assert sorted(arithmetic) == ["add", "addcdiv", "lerp", "lerp", "mul", "pow", "sqrt"]
    assert "clamp" not in seen.names
    assert seen.largest < 10


def test_operations_do_not_grow_with_the_number_of_small_parameters() -> None:
    counts = []
    for number in (10, 100):
        params = [torch.nn.Parameter(torch.randn(3)) for _ in range(number)]
        optimizer = funcopt.optim.RMSprop(params, lr=0.1)
        for param in params:
            param.grad = torch.randn(3)
        optimizer.step()
        with Operations() as seen:
            optimizer.step()
        counts.append(len(seen.names))
    assert counts[0] == counts[1]


def test_a_schedule_records_nothing_anew() -> None:
    param = torch.nn.Parameter(torch.randn(3))
    optimizer = funcopt.optim.AdamW([param], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    for step in range(10):
        param.grad = torch.randn(3)
        optimizer.step()
        scheduler.step()
        if step == 0:
            before = rule._record.cache_info().misses
    assert rule._record.cache_info().misses == before
