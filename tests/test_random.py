"""Keys and draws: the published cipher, the distributions, and the same numbers in every mode of torch."""

import doctest
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap

from funcopt import random

REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

DRAWS = {
    "split": lambda key: random.split(key, (2, 3)),
    "fold_in": lambda key: random.fold_in(key, 7),
    "bits": lambda key: random.bits(key, (4, 5)),
    "bits64": lambda key: random.bits(key, (4, 5), 64),
    "uniform": lambda key: random.uniform(key, (4, 5), minval=-1.0, maxval=3.0),
    "uniform64": lambda key: random.uniform(key, (4, 5), torch.float64),
    "normal": lambda key: random.normal(key, (4, 5)),
    "normal16": lambda key: random.normal(key, (4, 5), torch.float16),
    "normal64": lambda key: random.normal(key, (4, 5), torch.float64),
    "complex": lambda key: random.normal(key, (4, 5), torch.complex64),
    "rademacher": lambda key: random.rademacher(key, (4, 5)),
    "scalar": lambda key: random.normal(key),
    "empty": lambda key: random.normal(key, (0, 3)),
}


@pytest.fixture(params=DRAWS.values(), ids=DRAWS)
def draw(request):
    return request.param


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# The cipher


@pytest.mark.parametrize(
    "key, counter, expected",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers_of_random123(key, counter, expected):
    words = random.threefry2x32(torch.tensor(key), *map(torch.tensor, counter))
    assert tuple(word.item() for word in words) == expected


def test_threefry_enciphers_element_by_element():
    key, x0, x1 = random.key(3), torch.arange(6).reshape(2, 3), torch.arange(6, 12).reshape(2, 3)
    y0, y1 = random.threefry2x32(key, x0, x1)
    for row in range(2):
        for column in range(3):
            single = random.threefry2x32(key, x0[row, column], x1[row, column])
            assert (y0[row, column], y1[row, column]) == single


# Keys


@pytest.mark.parametrize(
    "seed, words",
    [
        (0, (0, 0)),
        (2**32 - 1, (0, 0xFFFFFFFF)),
        (2**40 + 3, (256, 3)),
        (-1, (0xFFFFFFFF, 0xFFFFFFFF)),
        (2**63 - 1, (0x7FFFFFFF, 0xFFFFFFFF)),
        (-(2**63), (0x80000000, 0)),
    ],
)
def test_key_holds_the_high_and_the_low_word_of_the_seed(seed, words):
    assert torch.equal(random.key(seed), torch.tensor(words))
    assert torch.equal(random.key(torch.tensor(seed)), torch.tensor(words))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.uint32, torch.int64, torch.uint64])
def test_key_of_a_tensor_depends_on_the_value_alone(dtype):
    assert torch.equal(random.key(torch.tensor(77, dtype=dtype)), random.key(77))


def test_fold_in_of_a_tensor_counts_modulo_a_word():
    key = random.key(5)
    assert torch.equal(random.fold_in(key, torch.tensor(-1, dtype=torch.int32)), random.fold_in(key, 2**32 - 1))
    assert torch.equal(random.fold_in(key, torch.tensor(2**32 + 9)), random.fold_in(key, 9))


def test_as_key_takes_a_key_or_a_seed():
    key = random.key(5)
    assert random.as_key("f", key) is key
    assert torch.equal(random.as_key("f", 5), key)
    assert torch.equal(random.as_key("f", torch.tensor(5)), key)


def test_derived_keys_are_distinct_words():
    key = random.key(1)
    derived = [*random.split(key, 500), *(random.fold_in(key, data) for data in range(500, 550)), key]
    words = torch.stack(derived)
    assert words.dtype == torch.int64 and words.min() >= 0 and words.max() < 2**32
    assert len(torch.unique(words, dim=0)) == len(words)


def test_fold_in_continues_split():
    key = random.key(1)
    assert torch.equal(torch.stack([random.fold_in(key, data) for data in range(3)]), random.split(key, 3))


# The layout of a draw


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 0, 3), (0,)])
def test_shapes(shape):
    key = random.key(1)
    assert random.split(key, shape).shape == (*shape, 2)
    for values in (random.bits(key, shape), random.uniform(key, shape), random.rademacher(key, shape)):
        assert values.shape == shape and values.is_contiguous()
    assert random.normal(key, shape, torch.complex64).shape == shape


def test_an_element_depends_on_its_row_major_position_alone():
    key = random.key(9)
    long = random.bits(key, (24,))
    assert torch.equal(random.bits(key, (10,)), long[:10])
    assert torch.equal(random.bits(key, (2, 3, 4)), long.reshape(2, 3, 4))
    assert torch.equal(random.bits(key, [2, 12]), long.reshape(2, 12))
    assert random.bits(key) == long[0]
    assert torch.equal(random.split(key, (2, 3)), random.split(key, 6).reshape(2, 3, 2))
    assert torch.equal(random.split(key), random.split(key, 2))


@pytest.mark.parametrize("width, low, high", [(8, 0, 2**8), (16, 0, 2**16), (32, 0, 2**32), (64, -(2**63), 2**63)])
def test_bits_fill_their_width(width, low, high):
    values = random.bits(random.key(2), (4096,), width)
    span = high - low
    assert values.dtype == torch.int64
    assert low <= values.min().item() < low + span // 100
    assert high - span // 100 < values.max().item() + span // 256 and values.max().item() < high


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_uniform_stays_below_one_on_the_grid_of_its_dtype(dtype):
    values = random.uniform(random.key(3), (5000,), dtype)
    assert values.dtype == dtype
    assert values.min() >= 0 and values.max() < 1
    steps = values.to(torch.float64) / torch.finfo(dtype).eps
    assert torch.equal(steps, steps.round())


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_uniform_bounds(dtype):
    minval, maxval = torch.tensor([[-2.0], [0.5]]), torch.tensor([-1.0, 3.0, 100.0])
    values = random.uniform(random.key(4), (500, 2, 3), dtype, minval, maxval)
    assert values.dtype == dtype
    assert (values >= torch.minimum(minval, values.amax(0))).all()
    valid = minval < maxval
    assert ((values >= minval) & (values <= maxval))[:, valid].all()


def test_uniform_is_differentiable_in_its_bounds():
    key = random.key(4)
    fraction = random.uniform(key, (), torch.float64)
    bounds = (torch.tensor(1.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    d_min, d_max = grad(lambda low, high: random.uniform(key, (), torch.float64, low, high), (0, 1))(*bounds)
    torch.testing.assert_close((d_min, d_max), (1 - fraction, fraction))


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64, torch.complex128], ids=str)
def test_normal_is_finite_and_of_its_dtype(dtype):
    values = random.normal(random.key(3), (5000,), dtype)
    assert values.dtype == dtype and torch.isfinite(values).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, *REAL, torch.complex64], ids=str)
def test_rademacher_is_a_sign_in_every_dtype(dtype):
    values = random.rademacher(random.key(3), (64,), dtype)
    assert values.dtype == dtype
    assert torch.equal(values, random.rademacher(random.key(3), (64,)).to(dtype))
    assert torch.equal(values * values, torch.ones(64, dtype=dtype))


# Distributions: fixed keys, bounds of five standard deviations

MANY = 200_000


def test_every_bit_is_fair():
    values = random.bits(random.key(10), (MANY,), 64)
    for bit in range(64):
        ones = ((values >> bit) & 1).sum().item()
        assert abs(ones - MANY / 2) < 5 * math.sqrt(MANY) / 2, bit


def test_uniform_is_uniform():
    counts = torch.histc(random.uniform(random.key(11), (MANY,)), bins=100, min=0, max=1)
    chi_square = ((counts - MANY / 100).square() / (MANY / 100)).sum().item()
    assert abs(chi_square - 99) < 5 * math.sqrt(2 * 99)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normal_has_the_normal_moments_and_distribution(dtype):
    z = random.normal(random.key(12), (MANY,), dtype).to(torch.float64)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        deviation = math.sqrt((math.prod(range(1, 2 * power, 2)) - moment**2) / MANY)
        assert abs(z.pow(power).mean().item() - moment) < 5 * deviation, power
    ranks = torch.arange(1, MANY + 1, dtype=torch.float64) / MANY
    assert (torch.special.ndtr(z.sort().values) - ranks).abs().max() * math.sqrt(MANY) < 2.5  # Kolmogorov's statistic


def test_complex_normal_has_unit_variance_in_independent_parts():
    z = random.normal(random.key(13), (MANY,), torch.complex128)
    covariance = torch.cov(torch.view_as_real(z).T)
    assert (covariance - torch.eye(2) / 2).abs().max() < 5 / math.sqrt(MANY)


@pytest.mark.parametrize(
    "streams",
    [
        lambda key: random.split(key, 4),
        lambda key: torch.stack([random.fold_in(key, step) for step in range(4)]),
        lambda key: torch.stack([random.key(seed) for seed in range(4)]),
        lambda key: torch.stack([key, *random.split(key, 3)]),
    ],
    ids=["split", "fold_in", "seeds", "parent and children"],
)
def test_streams_are_uncorrelated_with_one_another_and_with_their_past(streams):
    z = vmap(lambda key: random.normal(key, (MANY // 4,)))(streams(random.key(14)))
    lagged = torch.cat([z[:, 1:], z[:, :-1]])
    correlation = torch.corrcoef(lagged) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(MANY // 4)


# Modes of torch


def test_draws_are_pure(draw):
    key = random.key(21)
    before, version, state = key.clone(), key._version, torch.get_rng_state()
    first, second = draw(key), draw(key)
    assert torch.equal(first, second)
    assert torch.equal(key, before) and key._version == version
    assert first.untyped_storage().data_ptr() != key.untyped_storage().data_ptr() or first.numel() == 0
    torch.manual_seed(1)
    assert torch.equal(draw(key), first)
    torch.set_rng_state(state)
    draw(key)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_value_is_read_back(draw):
    """A meta tensor has no value that could be."""
    key = random.key(torch.empty((), dtype=torch.int64, device="meta"))
    assert draw(key).device.type == "meta"
    assert draw(key).shape == draw(random.key(0)).shape
    assert random.fold_in(key, torch.empty((), dtype=torch.int32, device="meta")).shape == (2,)


def test_key_is_put_on_the_device_asked_for():
    assert random.key(3, device="meta").device.type == "meta"
    assert random.key(torch.tensor(3), device="meta").device.type == "meta"


def test_vmap_over_keys_is_a_loop(draw):
    keys = random.split(random.key(22), 3)
    expected = torch.stack([draw(key) for key in keys])
    assert torch.equal(vmap(draw)(keys), expected)
    assert torch.equal(vmap(draw, in_dims=1)(keys.T), expected)
    assert torch.equal(vmap(draw, out_dims=-1)(keys).movedim(-1, 0), expected)


def test_nested_vmap_is_a_double_loop(draw):
    keys = random.split(random.key(23), (2, 3))
    expected = torch.stack([torch.stack([draw(key) for key in row]) for row in keys])
    assert torch.equal(vmap(vmap(draw))(keys), expected)


def test_vmap_over_seeds_and_data():
    seeds = torch.tensor([0, 5, -1, 2**40])
    assert torch.equal(vmap(random.key)(seeds), torch.stack([random.key(seed) for seed in seeds.tolist()]))
    key = random.key(1)
    steps = torch.arange(4, dtype=torch.int32)
    expected = torch.stack([random.fold_in(key, step) for step in range(4)])
    assert torch.equal(vmap(random.fold_in, in_dims=(None, 0))(key, steps), expected)
    lows = torch.tensor([0.0, 1.0, 2.0])
    expected = torch.stack([random.uniform(key, (3,), torch.float32, low, 5.0) for low in lows])
    assert torch.equal(vmap(lambda low: random.uniform(key, (3,), torch.float32, low, 5.0))(lows), expected)


def test_one_graph_whatever_the_key(draw, fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(draw, backend=counter, fullgraph=True)
    for seed in (0, 1, 2**40, -3):
        key = random.key(seed)
        assert torch.equal(compiled(key), draw(key))
    assert counter.frame_count == 1


def test_one_graph_for_a_loop_of_steps(fresh_compiler):
    def step(key, count):
        drawn = random.normal(random.fold_in(key, count), (3,))
        for _ in range(2):
            key, subkey = random.split(key)
            drawn = drawn + random.normal(subkey, (3,))
        return key, count + 1, drawn

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    state = expected = (random.key(1), torch.zeros((), dtype=torch.int32))
    seen = []
    for _ in range(5):
        *state, drawn = compiled(*state)
        *expected, eager = step(*expected)
        assert torch.equal(drawn, eager) and torch.equal(state[0], expected[0])
        seen.append(drawn)
    assert counter.frame_count == 1
    assert len(torch.unique(torch.cat(seen))) == 15


def test_one_graph_for_a_key_from_a_seed_under_vmap(fresh_compiler):
    def draws(seeds):
        return vmap(vmap(lambda seed: random.normal(random.split(random.key(seed))[1], (3,)), in_dims=0))(seeds)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(draws, backend=counter, fullgraph=True)
    for offset in range(3):
        seeds = torch.arange(6).reshape(2, 3) + offset
        assert torch.equal(compiled(seeds), draws(seeds))
    assert counter.frame_count == 1


def test_one_graph_for_all_sizes(fresh_compiler):
    def like(key, x):
        return random.normal(key, x.shape) + random.uniform(key, tuple(x.shape))

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(like, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for size in (3, 5, 9):
        x = torch.zeros(size, 2)
        assert torch.equal(compiled(random.key(size), x), like(random.key(size), x))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[-1]


def test_inductor(fresh_compiler):
    def draws(key):
        return random.uniform(key, (33,), minval=-0.3, maxval=0.7), random.normal(key, (70, 11))

    compiled = torch.compile(draws, fullgraph=True)
    for key in (random.key(31), random.key(-1)):
        (uniform, normal), expected = compiled(key), draws(key)
        assert torch.equal(uniform, expected[0])
        torch.testing.assert_close(normal, expected[1], rtol=0, atol=2e-6)


def test_inductor_vmap(fresh_compiler):
    draws = vmap(lambda key: random.bits(random.split(key)[1], (3, 5)), in_dims=1)
    keys = random.split(random.key(32), 4).T
    assert torch.equal(torch.compile(draws, fullgraph=True)(keys), draws(keys))


# Wrong arguments

KEY = torch.tensor([0, 1])

WRONG_KEYS = [
    (3, TypeError, "key must be an int64 tensor made by funcopt.random.key, split or fold_in, got key=3"),
    (torch.zeros(2), TypeError, "got a tensor of torch.float32"),
    (torch.zeros(2, dtype=torch.int32), TypeError, "got a tensor of torch.int32"),
    (torch.tensor(3), ValueError, "key must have the shape (2,), got ()"),
    (torch.zeros(4, 2, dtype=torch.int64), ValueError, "(2,), got (4, 2). Use torch.func.vmap for several keys"),
]


@pytest.mark.parametrize("name", ["split", "fold_in", "bits", "uniform", "normal", "rademacher"])
@pytest.mark.parametrize("key, error, message", WRONG_KEYS)
def test_wrong_keys(name, key, error, message):
    arguments = (1,) if name == "fold_in" else ()
    with pytest.raises(error) as caught:
        getattr(random, name)(key, *arguments)
    assert str(caught.value).startswith(f"{name}: ") and message in str(caught.value)


WRONG_ARGUMENTS = [
    (lambda: random.key(1.0), TypeError, "key: seed must be an int or a 0-d integer tensor, got seed=1.0"),
    (lambda: random.key(True), TypeError, "key: seed must be an int or a 0-d integer tensor, got seed=True"),
    (lambda: random.key(2**63), ValueError, "key: seed must lie in [-9223372036854775808, 9223372036854775808), got"),
    (lambda: random.key(torch.tensor(1.0)), TypeError, "key: seed must be an integer, got a tensor of torch.float32"),
    (lambda: random.key(torch.tensor(True)), TypeError, "key: seed must be an integer, got a tensor of torch.bool"),
    (lambda: random.key(torch.tensor([1])), ValueError, "key: seed must be a 0-d tensor, got the shape (1,)"),
    (lambda: random.as_key("f", "a"), TypeError, "f: key must be an int or a 0-d integer tensor, got key='a'"),
    (lambda: random.as_key("f", torch.zeros(3)), TypeError, "f: key must be an int64 tensor made by"),
    (lambda: random.split(KEY, -1), ValueError, "split: num must not be negative, got num=(-1,)"),
    (lambda: random.split(KEY, 2.0), TypeError, "split: num must be a tuple of ints, got num=(2.0,)"),
    (lambda: random.split(KEY, (2, -3)), ValueError, "split: num must not be negative, got num=(2, -3)"),
    (lambda: random.fold_in(KEY, -1), ValueError, "fold_in: data must lie in [0, 4294967296), got data=-1"),
    (lambda: random.fold_in(KEY, 2**32), ValueError, "fold_in: data must lie in [0, 4294967296), got data=4294967296"),
    (lambda: random.fold_in(KEY, 0.5), TypeError, "fold_in: data must be an int or a 0-d integer tensor, got data=0.5"),
    (
        lambda: random.fold_in(KEY, torch.arange(3)),
        ValueError,
        "fold_in: data must be a 0-d tensor, got the shape (3,)",
    ),
    (lambda: random.bits(KEY, (2,), 12), ValueError, "bits: width must be 8, 16, 32 or 64, got width=12"),
    (lambda: random.bits(KEY, 3), TypeError, "bits: shape must be a tuple of ints, got shape=3"),
    (lambda: random.uniform(KEY, (2.0,)), TypeError, "uniform: shape must be a tuple of ints, got shape=(2.0,)"),
    (lambda: random.uniform(KEY, (2, -1)), ValueError, "uniform: shape must not be negative, got shape=(2, -1)"),
    (lambda: random.uniform(KEY, (), torch.int32), TypeError, "uniform: dtype must be one of torch.float16"),
    (lambda: random.uniform(KEY, (), torch.complex64), TypeError, "got dtype=torch.complex64"),
    (lambda: random.uniform(KEY, (2,), minval=torch.zeros(3)), ValueError, "minval must broadcast to shape=(2,), got"),
    (lambda: random.uniform(KEY, (2,), maxval=torch.ones(1, 2)), ValueError, "maxval must broadcast to shape=(2,)"),
    (lambda: random.normal(KEY, (-2,)), ValueError, "normal: shape must not be negative, got shape=(-2,)"),
    (lambda: random.normal(KEY, (), torch.int64), TypeError, "normal: dtype must be one of torch.float16"),
    (
        lambda: random.normal(KEY, (), torch.complex32),
        TypeError,
        "torch.complex64, torch.complex128, got dtype=torch.co",
    ),
    (lambda: random.normal(KEY, True, torch.complex64), TypeError, "normal: shape must be a tuple of ints"),
    (lambda: random.rademacher(KEY, (), torch.uint8), TypeError, "rademacher: dtype must be able to hold -1"),
    (lambda: random.rademacher(KEY, (), torch.bool), TypeError, "got dtype=torch.bool"),
    (lambda: random.rademacher(KEY, "ab"), TypeError, "rademacher: shape must be a tuple of ints, got shape='ab'"),
]


@pytest.mark.parametrize("call, error, message", WRONG_ARGUMENTS, ids=[message for _, _, message in WRONG_ARGUMENTS])
def test_wrong_arguments(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_checks_work_under_vmap():
    with pytest.raises(ValueError, match=r"normal: key must have the shape \(2,\), got \(3, 2\)"):
        vmap(random.normal)(torch.zeros(4, 3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="normal: key must be an int64 tensor"):
        vmap(random.normal)(torch.zeros(4, 2))


def test_examples():
    result = doctest.testmod(random)
    assert result.attempted and not result.failed
