"""What holds for every schedule: pure, one graph, vmap as a loop, derivatives that exist everywhere."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters as compiler_counters

import funcopt as fo
import funcopt.schedules
from funcopt.testing import check_schedule
from tests.catalogue import SCHEDULE_CASES, SCHEDULES, case_id

LAST = 2**31 - 1
WITH_SCALARS = [(entry, case) for entry, case in SCHEDULE_CASES if entry.scalar_values(case)]
every_case = pytest.mark.parametrize("entry, case", SCHEDULE_CASES, ids=case_id)
every_case_with_scalars = pytest.mark.parametrize("entry, case", WITH_SCALARS, ids=case_id)


def edge_counts(case):
    """The start, around each boundary, behind the end, and the count at which counters saturate."""
    near = {boundary + offset for boundary in case.boundaries for offset in (-1, 0, 1)}
    return sorted({0, 1, *near, 1000, LAST} - {-1})


def counter(count, dtype=torch.int32):
    return torch.tensor(count, dtype=dtype)


def as_tensors(values, dtype=torch.float64):
    return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    compiler_counters.clear()
    yield
    torch._dynamo.reset()


def number_of_graphs():
    """Not how often the backend was called: a 0-d float64 input makes Dynamo restart the first analysis once."""
    return compiler_counters["stats"]["unique_graphs"]


def value_of(entry, case, count):
    """The value at a count, as a function of a dict of scalars."""
    return lambda scalars: entry.make(**{**case.arguments, **scalars})(counter(count))


def test_every_public_schedule_is_listed_once():
    public = [
        name for name, value in vars(fo.schedules).items() if callable(value) and value.__module__.startswith("funcopt")
    ]
    assert sorted(public) == sorted(entry.name for entry in SCHEDULES)
    assert all(getattr(fo, name) is getattr(fo.schedules, name) for name in public)


@pytest.mark.parametrize("entry", SCHEDULES, ids=case_id)
def test_every_scalar_is_given_in_a_case(entry):
    assert set(entry.scalars) == {name for case in entry.cases for name in entry.scalar_values(case)}


@every_case
def test_an_int_and_a_counter_of_any_integer_dtype_agree(entry, case):
    schedule = entry.make(**case.arguments)
    for count in edge_counts(case):
        value = schedule(count)
        assert value.shape == () and value.dtype == torch.float64 and value.device.type == "cpu"
        assert value.isfinite()
        for dtype in (torch.int32, torch.int64):
            assert torch.equal(schedule(counter(count, dtype)), value)


@every_case
def test_behind_its_end_a_schedule_that_ends_is_constant(entry, case):
    schedule = entry.make(**case.arguments)
    if entry.name in ("exponential_decay", "warmup_exponential_decay_schedule", "inverse_sqrt_schedule"):
        assert 0 <= schedule(LAST) <= max(schedule(1000), schedule(0))
    else:
        end = max(case.boundaries, default=0)
        assert schedule(end) == schedule(end + 1) == schedule(LAST)


@every_case
def test_a_negative_count_has_a_finite_value(entry, case):
    schedule = entry.make(**case.arguments)
    assert all(schedule(count).isfinite() for count in (-1, counter(-7), counter(-LAST)))


@every_case
def test_pure(entry, case):
    arguments = copy.deepcopy(case.arguments)
    schedule = entry.make(**arguments)
    count = counter(3)
    first = schedule(count)
    kept = first.clone()
    schedule(counter(11))
    first.fill_(77)
    assert torch.equal(schedule(count), kept) and count == 3
    assert torch.equal(entry.make(**case.arguments)(count), kept)
    assert arguments == case.arguments


@pytest.mark.parametrize(
    "schedule, direction",
    [
        (fo.constant_schedule(0.3), "increasing"),
        (fo.linear_schedule(1.0, 0.1, 5, 2), "decreasing"),
        (fo.polynomial_schedule(0.1, 1.0, 2.0, 8), "increasing"),
        (fo.exponential_decay(0.5, 2, 0.7, end_value=0.2), "decreasing"),
        (fo.cosine_decay_schedule(0.1, 20, 0.1, 2.0), "decreasing"),
        (fo.warmup_constant_schedule(0.0, 1.0, 5), "increasing"),
        (fo.piecewise_constant_schedule(1.0, {3: 0.5, 7: 0.1}), "decreasing"),
        (fo.piecewise_interpolate_schedule("cosine", 1.0, {3: 2.0, 7: 2.0}), "increasing"),
    ],
)
def test_what_is_said_to_rise_or_to_fall_does(schedule, direction):
    check_schedule(schedule, monotone=direction)


@every_case_with_scalars
def test_a_scalar_given_as_a_tensor_is_the_same_and_is_not_shared(entry, case):
    values = entry.scalar_values(case)
    schedule = entry.make(**case.arguments)
    scalars = as_tensors(values)
    for count in edge_counts(case):
        value = value_of(entry, case, count)(scalars)
        assert value.shape == () and value.dtype == torch.float64
        torch.testing.assert_close(value, schedule(count), rtol=1e-15, atol=1e-15)
        value.fill_(77)
    assert scalars == as_tensors(values)
    small = value_of(entry, case, 1)(as_tensors(values, torch.float32))
    assert small.dtype == torch.float64
    torch.testing.assert_close(small, schedule(1), rtol=1e-6, atol=1e-7)


@every_case
def test_a_device_without_float64(entry, case, monkeypatch):
    schedule = entry.make(**case.arguments)
    counts = edge_counts(case)
    expected = [schedule(count) for count in counts]
    monkeypatch.setattr("funcopt.schedules.interpolation.scalar_dtype", lambda device: torch.float32)
    for count, value in zip(counts, expected):
        single = schedule(counter(count))
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), value, rtol=1e-5, atol=1e-6)


@every_case
def test_one_graph_whatever_the_count_and_the_scalars(entry, case):
    """The schedule is built in the graph, with its scalars as tensors; built outside it comes with sgd below."""

    def value(count, scalars):
        return entry.make(**{**case.arguments, **scalars})(count)

    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    for count in (*range(22), *edge_counts(case)):
        factor = 1 + 0.01 * (count % 7)
        scaled = {name: factor * scalar for name, scalar in entry.scalar_values(case).items()}
        scalars = as_tensors(scaled, torch.float32)  # a 0-d float64 input lets Dynamo trace everything twice
        actual = compiled(counter(count), scalars)
        torch.testing.assert_close(actual, value(counter(count), scalars), rtol=1e-14, atol=1e-15)
    assert number_of_graphs() == 1


@every_case
def test_vmap_over_counts_is_a_loop(entry, case):
    schedule = entry.make(**case.arguments)
    counts = [*range(20), *edge_counts(case)]
    batched = torch.vmap(schedule)(counter(counts))
    torch.testing.assert_close(batched, torch.stack([schedule(count) for count in counts]), rtol=1e-15, atol=0)


@every_case_with_scalars
def test_vmap_over_each_scalar_is_a_loop(entry, case):
    for name, value in entry.scalar_values(case).items():
        values = torch.tensor([value, 0.9 * value, 1.1 * value + 0.01], dtype=torch.float64)
        for count in edge_counts(case):
            at = value_of(entry, case, count)
            batched = torch.vmap(lambda scalar, at=at, name=name: at({name: scalar}))(values)
            loop = torch.stack([at({name: scalar}) for scalar in values])
            torch.testing.assert_close(batched, loop, rtol=1e-15, atol=0)


@every_case_with_scalars
def test_vmap_over_counts_and_scalars_together(entry, case):
    counts = counter(edge_counts(case))
    scalars = {
        name: torch.linspace(value, 1.1 * value, len(counts), dtype=torch.float64)
        for name, value in entry.scalar_values(case).items()
    }

    def value(count, scalars):
        return entry.make(**{**case.arguments, **scalars})(count)

    rows = [{name: values[i] for name, values in scalars.items()} for i in range(len(counts))]
    loop = torch.stack([value(count, row) for count, row in zip(counts, rows)])
    torch.testing.assert_close(torch.vmap(value)(counts, scalars), loop, rtol=1e-15, atol=0)


@every_case_with_scalars
def test_derivatives_are_those_of_finite_differences(entry, case):
    values = entry.scalar_values(case)
    for count in (2, *edge_counts(case)):
        at = value_of(entry, case, count)
        reverse = torch.func.jacrev(at)(as_tensors(values))
        forward = torch.func.jacfwd(at)(as_tensors(values))
        for name, value in values.items():
            step = 1e-6 * max(abs(value), 1)
            above, below = (at(as_tensors({**values, name: value + sign * step})) for sign in (1, -1))
            torch.testing.assert_close(reverse[name], (above - below) / (2 * step), rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(forward[name], reverse[name], rtol=1e-12, atol=1e-14)


@every_case_with_scalars
def test_second_derivatives_are_finite_and_agree_in_every_mode(entry, case):
    forward, reverse = torch.func.jacfwd, torch.func.jacrev
    for count in edge_counts(case):
        at, scalars = value_of(entry, case, count), as_tensors(entry.scalar_values(case))
        expected = forward(reverse(at))(scalars)
        assert all(second.isfinite() for row in expected.values() for second in row.values())
        for hessian in (reverse(reverse(at)), forward(forward(at)), reverse(forward(at))):
            torch.testing.assert_close(hessian(scalars), expected, rtol=1e-12, atol=1e-14)


@every_case_with_scalars
def test_each_value_has_a_graph_of_its_own(entry, case):
    """A schedule of leaves that require gradients is built once, and differentiated at each step."""
    leaves = {name: scalar.requires_grad_() for name, scalar in as_tensors(entry.scalar_values(case)).items()}
    schedule = entry.make(**{**case.arguments, **leaves})
    for count in (0, 3, LAST):
        schedule(count).backward()
    assert all(leaf.grad is None or leaf.grad.isfinite() for leaf in leaves.values())


def train(schedule, backend, steps=22):
    """The rates that sgd used, and the number of graphs."""
    optimizer = fo.sgd(schedule)
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    grads = {"w": torch.ones(3, dtype=torch.float64)}
    compiled = torch.compile(optimizer.update, fullgraph=True, backend=backend)
    state, rates = optimizer.init(params), []
    for _ in range(steps):
        updates, state = compiled(grads, state, params)
        rates.append(-updates["w"][0])
    return torch.stack(rates), number_of_graphs()


@pytest.mark.parametrize("entry", SCHEDULES, ids=case_id)
def test_the_learning_rate_of_a_compiled_sgd(entry):
    schedule = entry.make(**entry.cases[0].arguments)
    rates, graphs = train(schedule, "aot_eager")
    assert graphs == 1
    torch.testing.assert_close(rates, torch.stack([schedule(count) for count in range(22)]), rtol=1e-14, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # Inductor's import
def test_the_learning_rate_of_a_compiled_sgd_under_inductor():
    schedule = fo.join_schedules(
        [
            fo.warmup_stable_decay_schedule(0.0, 1.0, 2, 2, 3, 0.1, "1-sqrt"),
            fo.cosine_onecycle_schedule(8, 1.0),
            fo.exponential_decay(0.5, 2, 0.7, end_value=0.2),
        ],
        [7, 15],
    )
    rates, graphs = train(schedule, "inductor")
    assert graphs == 1
    torch.testing.assert_close(rates, torch.stack([schedule(count) for count in range(22)]), rtol=1e-12, atol=1e-15)
