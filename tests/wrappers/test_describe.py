"""The routing table: what it shows, of what it is made, and that its bytes are those of the state."""

import enum

import pytest
import torch

import funcopt as fo
from funcopt import tree
from tests.catalogue import CASES, case_id
from tests.trees import draw

PARAMS = {
    "encoder": {"weight": torch.ones(40, 30), "bias": torch.ones(40)},
    "head": {"weight": torch.ones(2, 40, dtype=torch.bfloat16), "bias": torch.ones(2)},
}


def is_matrix(path, leaf):
    return leaf.ndim == 2


def transformations(optimizer, params=PARAMS):
    """The last column by path."""
    lines = fo.describe(optimizer, params).splitlines()
    start = lines[0].index("transformation")
    return {line.split()[0]: line[start:] for line in lines[1:-1]}


def test_the_table():
    optimizer = fo.chain(
        fo.clip_by_global_norm(1.0),
        fo.partition(
            {"matrices": fo.adamw(1e-3, mask=fo.by_path({"head*": False, "*": True})), "vectors": fo.sgd(0.1)},
            {is_matrix: "matrices", "*": "vectors"},
        ),
        fo.masked(fo.scale(0.5), {"head*": True, "*": False}),
    )
    assert fo.describe(optimizer, PARAMS) == (
        "leaf            shape     dtype     label     state bytes  transformation\n"
        "encoder.weight  (40, 30)  float32   matrices        9,600  "
        "chain(clip_by_global_norm(1.0), adamw(0.001, mask=True))\n"
        "encoder.bias    (40,)     float32   vectors             0  chain(clip_by_global_norm(1.0), sgd(0.1))\n"
        "head.weight     (2, 40)   bfloat16  matrices          640  "
        "chain(clip_by_global_norm(1.0), adamw(0.001, mask=False), scale(0.5))\n"
        "head.bias       (2,)      float32   vectors             0  "
        "chain(clip_by_global_norm(1.0), sgd(0.1), scale(0.5))\n"
        "4 leaves, 1,322 parameters (5,128 bytes); state of 10,272 bytes, 32 of them of no leaf"
    )


def test_without_labels_there_is_no_column():
    table = fo.describe(fo.sgd(0.1), {"w": torch.ones(3)})
    assert table.splitlines() == [
        "leaf  shape  dtype    state bytes  transformation",
        "w     (3,)   float32            0  sgd(0.1)",
        "1 leaf, 3 parameters (12 bytes); state of 8 bytes, 8 of them of no leaf",
    ]


@fo.factory
def of_ones_own(rate):
    """Hides a partition."""
    return fo.chain(fo.partition({"w": fo.adam(rate), "b": fo.sgd(rate)}, {is_matrix: "w", "*": "b"}), fo.scale(2.0))


@fo.factory
def every(inner, steps=1):
    """A wrapper that the library does not know."""
    return fo.GradientTransformation(inner.init, inner.update, inner.coupling)


@fo.factory
def best_of(*inner, named=None):
    return fo.GradientTransformation(inner[0].init, inner[0].update)


@fo.factory
def plain(rate):
    return fo.chain(fo.adamw(rate, weight_decay=0.1), fo.scale(2.0))


HEAD = {"head*": True, "*": False}


@pytest.mark.parametrize(
    "optimizer, head, encoder",
    [
        (fo.masked(fo.adam(0.1), HEAD), "adam(0.1)", "-"),
        (fo.freeze(fo.adam(0.1), HEAD), "frozen", "adam(0.1)"),
        (
            fo.chain(fo.freeze(fo.adam(0.1), HEAD), fo.scale(2.0)),
            "chain(frozen, scale(2.0))",
            "chain(adam(0.1), scale(2.0))",
        ),
        (fo.chain(fo.masked(fo.clip(1.0), HEAD), fo.masked(fo.sgd(0.1), HEAD)), "chain(clip(1.0), sgd(0.1))", "-"),
        (fo.chain(), "-", "-"),
        (
            fo.named_chain(("a", fo.masked(fo.clip(1.0), HEAD)), ("b", fo.sgd(0.1))),
            "named_chain(('a', clip(1.0)), ('b', sgd(0.1)))",
            "sgd(0.1)",
        ),
        (fo.adamw(0.1, mask={"head": False, "encoder": True}), "adamw(0.1, mask=False)", "adamw(0.1, mask=True)"),
        (fo.scale_by_path({"head*": 3.0, "*": 1.0}), "scale_by_path(3.0)", "scale_by_path(1.0)"),
        (of_ones_own(0.1), "chain(adam(0.1), scale(2.0))", "chain(adam(0.1), scale(2.0))"),
        (plain(0.1), "plain(0.1)", "plain(0.1)"),
        (every(fo.masked(fo.adam(0.1), HEAD), steps=3), "every(adam(0.1), steps=3)", "every(-, steps=3)"),
        (
            best_of(fo.freeze(fo.sgd(0.1), HEAD), named={"x": [fo.masked(fo.clip(1.0), HEAD)]}),
            "best_of(frozen, named={'x': [clip(1.0)]})",
            "best_of(sgd(0.1), named={'x': [-]})",
        ),
        (fo.GradientTransformation(*fo.adam(0.1)), *["GradientTransformation(init, update)"] * 2),
        (fo.stateless(lambda updates, params: updates), "stateless(<lambda>)", "stateless(<lambda>)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else repr(value)[:40],
)
def test_what_acts_on_a_leaf(optimizer, head, encoder):
    found = transformations(optimizer)
    assert (found["head.weight"], found["encoder.weight"]) == (head, encoder)


def test_what_acts_within_a_factory_of_ones_own_differs_by_leaf():
    assert transformations(of_ones_own(0.1))["head.bias"] == "chain(sgd(0.1), scale(2.0))"
    assert transformations(every(of_ones_own(0.1)))["head.bias"] == "every(chain(sgd(0.1), scale(2.0)))"


class Kind(enum.Enum):
    HEAD = "head"
    REST = "rest"


def test_labels_of_nested_partitions():
    inner = fo.partition({1: fo.adam(0.1), 2: fo.sgd(0.1)}, {"*bias": 2, "*": 1})
    outer = fo.partition({Kind.HEAD: every(inner), Kind.REST: fo.sgd(0.1)}, {"head*": Kind.HEAD, "*": Kind.REST})
    header, *rows, _ = fo.describe(outer, PARAMS).splitlines()
    start = header.index("label")
    labels = {row.split()[0]: row[start:].split()[0] for row in rows}
    assert labels == {"encoder.weight": "REST", "encoder.bias": "REST", "head.weight": "HEAD/1", "head.bias": "HEAD/2"}


def test_a_mask_within_a_group_is_asked_of_the_group_alone():
    groups = {"w": fo.adamw(0.1, mask=fo.by_path({is_matrix: True})), "b": fo.sgd(0.1)}
    found = transformations(fo.partition(groups, {is_matrix: "w", "*": "b"}))
    assert found["head.weight"] == "adamw(0.1, mask=True)" and found["head.bias"] == "sgd(0.1)"


@pytest.mark.parametrize("entry, case", CASES, ids=case_id)
def test_the_bytes_are_those_of_the_state(entry, case):
    """For all that there is; nothing is allocated on the way."""
    params = draw(1)
    optimizer = entry.make(**case)
    lines = fo.describe(optimizer, params).splitlines()
    state = optimizer.init(params)
    start = lines[0].index("state bytes")
    owned = sum(int(line[start:].split()[0].replace(",", "")) for line in lines[1:-1])
    words = lines[-1].replace(",", "").split("state of ")[1].split()
    total, rest = int(words[0]), int(words[2])
    assert len(lines) == 2 + 5
    assert total == sum(leaf.nbytes for leaf in tree.leaves(state)) == owned + rest


def test_no_memory_is_needed():
    params = {"huge": torch.empty(10**6, 10**6, device="meta")}
    assert "8,000,000,000,000 bytes" not in fo.describe(fo.sgd(0.1), params)
    assert "state of 8,000,000,000,012 bytes, 12 of them of no leaf" in fo.describe(fo.adam(0.1), params)


def test_the_longest_path_owns():
    params = {"w": torch.ones(1), "x": {"w": torch.ones(100)}}
    rows = fo.describe(fo.sgd(0.1, momentum=0.9), params).splitlines()
    assert [row.split()[3] for row in rows[1:3]] == ["4", "400"]


def test_a_bare_tensor():
    """It has no path; the leaves of the state that have its shape are its own."""
    table = fo.describe(fo.adam(0.1), torch.ones(3)).splitlines()
    assert table[1].startswith("(params)") and table[1].endswith(" 24  adam(0.1)")


def test_absent_and_empty():
    assert len(fo.describe(fo.adam(0.1), {"w": torch.ones(1), "b": None}).splitlines()) == 3
    assert fo.describe(fo.adam(0.1), {}).splitlines()[1:] == [
        "0 leaves, 0 parameters (0 bytes); state of 12 bytes, 12 of them of no leaf"
    ]


def test_packed():
    labels = {"encoder": "x", "head": "y"}
    optimizer = fo.partition({"x": fo.adam(0.1), "y": fo.sgd(0.1)}, labels)
    packed = fo.pack(tree.map(lambda leaf: leaf.float(), PARAMS), labels)
    assert transformations(optimizer, packed) == {"float32[x]": "adam(0.1)", "float32[y]": "sgd(0.1)"}


def test_errors():
    with pytest.raises(TypeError, match="describe: expected a GradientTransformation, got <function"):
        fo.describe(fo.adam, PARAMS)
    with pytest.raises(TypeError, match=r"init: the leaf 'n' of params is a tensor of torch\.int64"):
        fo.describe(fo.adam(0.1), {"n": torch.ones(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"masked: no pattern matches the leaf 'encoder\.weight'"):
        fo.describe(fo.masked(fo.adam(0.1), {"head*": True}), PARAMS)
