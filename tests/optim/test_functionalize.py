"""functionalize: the numbers of the classes themselves, in every mode that they allow."""

import pathlib
import pickle
import re

import pytest
import torch
from torch.func import grad, jvp, vmap

import funcopt as fo
from funcopt import tree
from funcopt.optim import functionalize

CASES = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.Adam, {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 0.1}),
    (torch.optim.Adamax, {"lr": 0.1}),
    (torch.optim.NAdam, {"lr": 0.1}),
    (torch.optim.RAdam, {"lr": 0.1, "betas": (0.9, 0.9)}),
    (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.9, "centered": True}),
    (torch.optim.Rprop, {"lr": 0.1}),
    (torch.optim.Adadelta, {"lr": 0.1}),
    (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1, "lr_decay": 0.1}),
    (torch.optim.ASGD, {"lr": 0.1, "t0": 2, "lambd": 0.1}),
    (torch.optim.Adafactor, {"lr": 0.1}),
    (torch.optim.Muon, {"lr": 0.1}),
    (torch.optim.SparseAdam, {"lr": 0.1}),
]
IDS = [f"{cls.__name__}-{'-'.join(arguments)}" for cls, arguments in CASES]
BRANCHES = {torch.optim.RAdam, torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adafactor}
"""Classes whose step branches on, or indexes by, a tensor: vmap does not get through."""
NOT_COMPILED = {torch.optim.RAdam, torch.optim.ASGD, torch.optim.Adafactor}
RATES_LOST = {torch.optim.Rprop, torch.optim.ASGD}
"""Classes whose state starts from the learning rate."""
UNDERIVABLE = {torch.optim.Adafactor, torch.optim.Muon, torch.optim.SparseAdam}
ROUNDED = {torch.optim.NAdam: 1e-7, torch.optim.Muon: 3e-2}
"""NAdam keeps a product in float32; Muon iterates in bfloat16."""


class Lion(torch.optim.Optimizer):
    """Someone else's class: it writes into data, counts in Python numbers, and scales its gradients in place."""

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state.update(calls=0, seen=0.0)
                    state.setdefault("mean", torch.zeros_like(p.data))
                state["calls"] += 1
                state["seen"] += 0.5
                mean, g = state["mean"], p.grad.data.mul_(2.0)
                p.data.add_((mean * group["beta"] + g).sign_(), alpha=-group["lr"] / state["calls"])
                mean.lerp_(g, 1 - group["beta"])


def normal(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(3, 4, generator=generator, dtype=dtype),
        "b": [None, torch.randn(4, 2, generator=generator, dtype=dtype)],
    }


def gradients(cls, steps=4):
    """The second of `b` comes late, and stays away once more."""
    made = [normal(10 + i) for i in range(steps)]
    for i in (0, 2):
        made[i]["b"][1] = None
    return [tree.map(lambda g: g.to_sparse(), g) for g in made] if cls is torch.optim.SparseAdam else made


def trained(cls, arguments, params, grads):
    tx = functionalize(cls, **arguments)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def close(found, expected, atol):
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("cls, arguments", [*CASES, (Lion, {"lr": 0.1})], ids=[*IDS, "Lion"])
def test_steps_are_those_of_the_class(cls, arguments):
    params, grads = normal(0), gradients(cls)
    leaves = [leaf.clone() for leaf in tree.leaves(params)]
    optimizer = cls(leaves, **arguments)
    tx = functionalize(cls, **arguments)
    state = start = tx.init(params)
    for g in grads:
        for leaf, grad_of_leaf in zip(leaves, (g["a"], g["b"][1])):
            leaf.grad = None if grad_of_leaf is None else grad_of_leaf.clone()
        optimizer.step()
        updates, state = tx.update(g, state, params)
        assert (updates["b"][1] is None) == (g["b"][1] is None)
        assert tree.flatten(state)[1] == tree.flatten(start)[1]
        params = fo.apply_updates(params, updates)
        close(params, leaves, 1e-15)
    for i, leaf in enumerate(leaves):
        for name, value in optimizer.state[leaf].items():
            column = state.tensors.get(name, state.numbers.get(name))
            found = [column["a"], column["b"][1]][i]
            assert float((found - value).abs().max()) == 0.0, name


@pytest.mark.parametrize("cls, arguments", CASES, ids=IDS)
def test_the_state_before_the_first_step(cls, arguments):
    params = normal(0)
    state = functionalize(cls, **arguments).init(params)
    if arguments.get("dampening"):  # which makes its buffer of the first gradient, and is told when that is
        assert [bool(flag) for flag in tree.leaves(state.flags["started"])] == [False, False]
        return
    starts = {"step_size": 0.1, "eta": 0.1, "mu": 1.0, "mu_product": 1.0, "sum": 0.1}
    for name, column in [*state.tensors.items(), *state.numbers.items()]:
        for leaf in tree.leaves(column):
            expected = torch.full_like(leaf, starts.get(name, 0.0))
            torch.testing.assert_close(leaf, expected)
        assert column["b"][0] is None
    assert state.flags == {}


@pytest.mark.parametrize("cls, arguments", [*CASES, (Lion, {"lr": 0.1})], ids=[*IDS, "Lion"])
def test_nothing_of_the_arguments_is_touched(cls, arguments):
    params, (g, *_) = normal(0), gradients(cls)
    tx = functionalize(cls, **arguments)
    given = (g, tx.init(params), params)
    before = pickle.dumps(tree.map(lambda leaf: leaf.to_dense().tolist(), given))
    results = tx.update(*given)
    assert pickle.dumps(tree.map(lambda leaf: leaf.to_dense().tolist(), given)) == before
    for leaf in tree.leaves(results):
        leaf.fill_(1)
    assert pickle.dumps(tree.map(lambda leaf: leaf.to_dense().tolist(), given)) == before
    assert all(leaf.grad is None and not leaf.requires_grad for leaf in tree.leaves(params))


def dense(seed):
    """Without None, which vmap does not return."""
    return tree.leaves(normal(seed))


def stacked(trees):
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


DENSE = [(cls, arguments) for cls, arguments in CASES if cls is not torch.optim.SparseAdam]
DENSE_IDS = [name for name in IDS if "Sparse" not in name]
REFUSED = "does what vmap, derivatives and the compiler do not follow"


@pytest.mark.parametrize("cls, arguments", [*DENSE, (Lion, {"lr": 0.1})], ids=[*DENSE_IDS, "Lion"])
def test_vmap_over_models(cls, arguments):
    models = [(dense(seed), [dense(10 * seed + i) for i in range(1, 4)]) for seed in (1, 2)]
    batch = (stacked([model[0] for model in models]), [stacked(each) for each in zip(*(m[1] for m in models))])

    def run(params, grads):
        return trained(cls, arguments, params, grads)

    if cls in BRANCHES:
        with pytest.raises(RuntimeError, match=REFUSED):
            vmap(run)(*batch)
        return
    close(vmap(run)(*batch), stacked([run(*model) for model in models]), ROUNDED.get(cls, 1e-13))


@pytest.mark.parametrize("cls, arguments", [*DENSE, (Lion, {"lr": 0.1})], ids=[*DENSE_IDS, "Lion"])
def test_vmap_over_learning_rates(cls, arguments):
    params, grads = dense(1), [dense(10 + i) for i in range(3)]
    rates = torch.tensor([0.1, 0.03], dtype=torch.float64)

    def run(rate):
        return trained(cls, {**arguments, "lr": rate}, params, grads)

    if cls in BRANCHES:
        with pytest.raises(RuntimeError, match=f"{REFUSED}|copies lr"):
            vmap(run)(rates)
        return
    close(vmap(run)(rates), stacked([run(rate.item()) for rate in rates]), ROUNDED.get(cls, 1e-13))


def directional(fn, at, eps=1e-6):
    return (fn(at + eps) - fn(at - eps)) / (2 * eps)


def weigh(params):
    return sum((leaf * leaf.square().cos()).sum() for leaf in tree.leaves(params))


@pytest.mark.parametrize("cls, arguments", DENSE, ids=DENSE_IDS)
@pytest.mark.parametrize("of", ["learning rate", "gradients", "params"])
def test_derivatives(cls, arguments, of):
    params, grads = normal(1), gradients(cls)

    def loss(x):
        some, sequence, given = params, grads, arguments
        if of == "learning rate":
            given = {**arguments, "lr": 0.1 + x}
        elif of == "gradients":
            sequence = [tree.map(lambda leaf: leaf + x, g) for g in grads]
        else:
            some = tree.map(lambda leaf: leaf + x, params)
        return weigh(trained(cls, given, some, sequence)[0])

    zero = torch.zeros((), dtype=torch.float64)
    lost = of == "learning rate" and cls in RATES_LOST
    if lost or cls in UNDERIVABLE:
        with pytest.raises(RuntimeError, match=f"{REFUSED}|copies lr|has no derivative"):
            grad(loss)(zero)
        return
    expected = directional(loss, zero)
    tolerance = {"rtol": 1e-5 if cls not in (torch.optim.NAdam, torch.optim.ASGD) else 1e-4, "atol": 1e-6}
    first_buffer = bool(arguments.get("dampening")) and of != "learning rate"
    if not first_buffer:  # where torch cuts the graph: the buffer of the first step is a detached copy
        torch.testing.assert_close(grad(loss)(zero), expected, **tolerance)
        torch.testing.assert_close(jvp(loss, (zero,), (torch.ones_like(zero),))[1], expected, **tolerance)
        x = zero.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(loss(x), x)[0], expected, **tolerance)


def test_a_pair_of_hyperparameters_with_a_tensor():
    params, grads = normal(1), gradients(torch.optim.Adam)

    def loss(x):
        return weigh(trained(torch.optim.Adam, {"lr": 0.1, "betas": (0.5 + x, 0.75)}, params, grads)[0])

    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(loss(zero), loss(0.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad(loss)(zero), directional(loss, 0.0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vmap(loss)(zero.expand(2) - 0.25)[0], loss(-0.25), rtol=1e-12, atol=0)


SHORT = [(torch.optim.SGD, {}), (torch.optim.RAdam, {})]
LONG = [case for case in DENSE if case not in SHORT]


@pytest.mark.parametrize("cls, arguments", [*SHORT, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG)])
def test_compiled_is_one_graph(cls, arguments):
    torch.compiler.reset()
    params, grads = normal(1), [normal(10 + i) for i in range(3)]
    tx = functionalize(cls, **arguments)
    update = torch.compile(tx.update, fullgraph=True, backend="aot_eager")
    state, start = tx.init(params), params
    if cls in NOT_COMPILED:
        with pytest.raises(Exception, match=f"{REFUSED}|data-dependent"):
            update(grads[0], state, params)
        return
    for i, g in enumerate(grads):
        with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
            updates, state = update(g, state, params)
        params = fo.apply_updates(params, updates)
    close((params, state), trained(cls, arguments, start, grads), ROUNDED.get(cls, 1e-13))


def test_a_learning_rate_in_the_state_changes_without_a_new_graph():
    torch.compiler.reset()
    params, (g, *_) = normal(1), [normal(2)]

    def adam(lr: float | torch.Tensor):
        return functionalize(torch.optim.Adam, lr=lr)

    tx = fo.inject_hyperparams(adam)(lr=0.1)
    update, state = torch.compile(tx.update, fullgraph=True, backend="aot_eager"), tx.init(params)
    first, state = update(g, state, params)
    with torch.compiler.set_stance("fail_on_recompile"):
        second, _ = update(g, fo.set_hyperparams(state, lr=0.05), params)
    torch.testing.assert_close(second["a"], first["a"] / 2)


def test_params_that_require_grad():
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    for cls in (torch.optim.SGD, torch.optim.Muon):
        tx = functionalize(cls, lr=0.1)
        updates, _ = tx.update([torch.ones_like(weight)], tx.init([weight]), [weight])
        reference = torch.ones(2, 2, dtype=torch.float64)
        optimizer = cls([reference], lr=0.1)
        reference.grad = torch.ones_like(reference)
        optimizer.step()
        torch.testing.assert_close(1 + updates[0].detach(), reference)
    with pytest.raises(RuntimeError, match="Muon has no derivative"):
        updates[0].sum().backward()
    tx = functionalize(torch.optim.SparseAdam)
    updates, _ = tx.update([torch.ones(2, 2, dtype=torch.float64).to_sparse()], tx.init([weight]), [weight])
    with pytest.raises(RuntimeError, match="SparseAdam has no derivative"):
        updates[0].sum().backward()


def test_low_precision_steps_arrive():
    params = {"w": torch.tensor([1.0, 256.0, 3.0], dtype=torch.bfloat16)}
    updates, _ = (tx := functionalize(torch.optim.SGD, lr=1.0)).update(params, tx.init(params), params)
    assert fo.apply_updates(params, updates)["w"].tolist() == [0.0, 0.0, 0.0]


class Stateful(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1, value="text", where="state"):
        super().__init__(params, {"lr": lr, "k": 0})
        self.value, self.where = value, where

    def step(self, closure=None):
        group = self.param_groups[0]
        if self.where == "group":
            group["k"] += 1
            return
        late = self.where == "late" and len(self.state[group["params"][0]]) > 0
        self.state[group["params"][0]]["later" if late else "value"] = self.value


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: functionalize(torch.optim.LBFGS), TypeError, "through a closure.*funcopt.optim.LBFGS"),
        (lambda: functionalize(torch.nn.Linear), TypeError, "expected a subclass of torch.optim.Optimizer"),
        (lambda: functionalize(torch.optim.SGD(normal(0)["b"][1:])), TypeError, "give the class"),
        (lambda: functionalize(torch.optim.SGD, lr=-1.0).init(normal(0)), ValueError, "Invalid learning rate: -1.0"),
        (lambda: functionalize(torch.optim.SGD).init({"a": torch.ones(1, dtype=torch.int64)}), TypeError, "'a'"),
        (lambda: functionalize(Stateful).init(normal(0)), TypeError, "keeps value='text'"),
        (lambda: functionalize(Stateful, where="group").init(normal(0)), RuntimeError, r"changes \['k'\]"),
        (lambda: functionalize(Stateful, where="late", value=1).init(normal(0)), RuntimeError, "same from the first"),
        (
            lambda: functionalize(torch.optim.Adagrad, initial_accumulator_value=torch.tensor(0.1)),
            TypeError,
            "initial_accumulator_value when it is constructed",
        ),
        (
            lambda: functionalize(torch.optim.SGD).update(normal(0), functionalize(torch.optim.SGD).init(normal(0))),
            ValueError,
            "needs the parameters",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_empty_trees():
    tx = functionalize(torch.optim.Adam)
    for params in ({}, {"a": None}):
        updates, state = tx.update(params, tx.init(params), params)
        assert updates == params and tree.leaves(state) == []


def test_the_table_of_the_page_says_what_is_tested():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "functionalize.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \| (\w+) \| (\w+) \| (\w+) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == list(dict.fromkeys(cls.__name__ for cls, _ in CASES))
    for name, *answers in rows:
        cls = getattr(torch.optim, name)
        sparse = cls is torch.optim.SparseAdam
        expected = [
            cls not in BRANCHES and not sparse,
            cls not in BRANCHES and not sparse,
            cls not in UNDERIVABLE,
            cls not in UNDERIVABLE | RATES_LOST,
            cls not in NOT_COMPILED and not sparse,
        ]
        assert [answer == "yes" for answer in answers] == expected, name


def test_init_is_not_compiled():
    torch.compiler.reset()
    init = torch.compile(functionalize(torch.optim.Adam).init, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="init cannot be compiled"):
        init(normal(0))
