"""Programs over elements compute what the functions over tensors do, and vary where they should."""

import pytest
import torch
from torch.fx import GraphModule

from funcopt.elements import taken_apart, written_out

VECTOR = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)
MATRIX = torch.arange(6, dtype=torch.float64).reshape(2, 3) - 2.5
CAPTURED = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)

FUNCTIONS = {
    "coordinates": lambda x, m: x[0] * x[1] ** 3 + m[1, 2],
    "differences": lambda x, m: ((x[1:] - x[:-1] ** 2) ** 2).sum(),
    "gradient of coordinates": torch.func.grad(lambda x, m: x[0] * x[2].sin() + x[1:].square().sum()),
    "gradient of a product": torch.func.grad(lambda x, m: (m @ x).square().sum()),
    "matrix products": lambda x, m: (m @ m.T) @ (m @ x),
    "reductions": lambda x, m: torch.stack([m.amax(), m.mean(), m.sum(0).amin(), (m > 0).sum()]),
    "keepdim": lambda x, m: m - m.mean(dim=1, keepdim=True),
    "clipping": lambda x, m: x * (1.0 / torch.linalg.vector_norm(x)).clamp(max=1.0),
    "conditions": lambda x, m: torch.where(x > 0, x, torch.where(m[0] < 0, 2.0, m[0])),
    "promotion": lambda x, m: x.float() * torch.tensor(3, dtype=torch.int32) + m[0, 0],
    "promotion of a comparison": lambda x, m: torch.full((2,), 0.1, dtype=torch.float32) == x[0] / 5,  # 0.1 in float64
    "low precision": lambda x, m: x.bfloat16() * m[0, 0].float(),
    "moves": lambda x, m: torch.cat([m.T.reshape(-1), x.flip(0), torch.nn.functional.pad(x, (1, 1), value=2.0)]),
    "parts": lambda x, m: sum(part.sum() for part in m.split([1, 2], dim=1)),
    "captured": lambda x, m: (x * CAPTURED).sum(),
    "in place": lambda x, m: (x + m[0]).sqrt_().nan_to_num_().mul_(m[1, 2]),
}


def run(written, vectors, scalars):
    shared, numbers = written.shared(*taken_apart([*scalars, *written.captured]))
    assert shared == []
    return written.varying(*vectors, *numbers)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_elements_are_those_of_the_tensors_for_every_run(name):
    fn, runs = FUNCTIONS[name], torch.stack([VECTOR, 2 * VECTOR, -VECTOR])
    written = written_out(lambda x, m: [fn(x, m)], [VECTOR, MATRIX], [True, False], [True], limit=400)
    assert written is not None
    elements = run(written, runs.T.unbind(), [MATRIX])
    for i, x in enumerate(runs):
        expected = fn(x, MATRIX)
        actual = torch.stack([element.expand(3)[i] for element in elements]).reshape(expected.shape)
        tolerance = 1e-12 if expected.dtype == torch.float64 else 0
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_what_does_not_vary_is_computed_apart():
    written = written_out(
        lambda x, count: [x * torch.exp(count), count + 1],
        [VECTOR, CAPTURED[0]],
        [True, False],
        [True, False],
        limit=99,
    )
    targets = [[str(node.target) for node in graph.graph.nodes] for graph in (written.shared, written.varying)]
    assert any("exp" in target for target in targets[0]) and not any("exp" in target for target in targets[1])
    assert isinstance(written.varying, GraphModule)


def test_the_same_operation_is_written_once_and_constants_are_computed():
    written = written_out(lambda x: [x.exp() + x.exp() + torch.ones(3).exp()], [VECTOR], [True], [True], limit=99)
    names = [str(node.target) for node in written.varying.graph.nodes]
    assert sum("exp" in name for name in names) == 3


NOT_WRITTEN = {
    "sorts": lambda x: x.sort().values,
    "draws": lambda x: x * torch.rand(3),
    "writes into an argument": lambda x: x.add_(1.0),
    "has too many elements": lambda x: x.repeat(100) * torch.arange(300),
    "reads a value": lambda x: x * x.sum().item(),
}


@pytest.mark.parametrize("what", NOT_WRITTEN)
def test_what_is_not_elementary_is_left_alone(what):
    assert written_out(lambda x: [NOT_WRITTEN[what](x)], [VECTOR], [True], [True], limit=99) is None


def test_a_result_that_varies_although_it_may_not_is_refused():
    assert written_out(lambda x: [x.exp()], [VECTOR], [True], [False], limit=99) is None
