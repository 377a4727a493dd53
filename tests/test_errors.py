"""Bad arguments: the message names the function, the argument, its value and what it must be."""

import math

import pytest
import torch

import funcopt as fo

BAD = [
    (lambda: fo.adam(0.1, b1=1.0), ValueError, r"scale_by_adam: b1 must lie in \[0, 1\), got b1=1.0"),
    (lambda: fo.adam(0.1, b2=1.5), ValueError, r"scale_by_adam: b2 must lie in \[0, 1\), got b2=1.5"),
    (lambda: fo.adamw(0.1, eps=-1e-8), ValueError, r"scale_by_adam: eps must lie in \[0, inf\)"),
    (lambda: fo.adamw(0.1, weight_decay=-0.1), ValueError, "add_decayed_weights: weight_decay must lie in"),
    (
        lambda: fo.adam(math.nan),
        ValueError,
        "learning_rate must lie in .*got learning_rate=nan",
    ),
    (lambda: fo.adam("0.1"), TypeError, "scale_by_learning_rate: learning_rate must be a number or a 0-d tensor"),
    (lambda: fo.adam(True), TypeError, "learning_rate=True"),
    (lambda: fo.amsgrad(0.1, b1=-0.1), ValueError, "scale_by_amsgrad: b1 must lie"),
    (lambda: fo.adagrad(0.1, -1.0), ValueError, "scale_by_rss: initial_accumulator_value must lie"),
    (lambda: fo.rmsprop(0.1, decay=1.0), ValueError, "scale_by_rms: decay must lie"),
    (lambda: fo.rmsprop(0.1, decay=1.0, centered=True), ValueError, "scale_by_stddev: decay must lie"),
    (lambda: fo.sgd(0.1, momentum=1.5), ValueError, r"trace: decay must lie in \[0, 1\]"),
    (lambda: fo.ema(1.0), ValueError, "ema: decay must lie"),
    (lambda: fo.clip(-1.0), ValueError, "clip: max_delta must lie"),
    (lambda: fo.clip_by_block_rms(0.0), ValueError, "clip_by_block_rms: threshold must lie"),
    (lambda: fo.clip_by_global_norm(-1.0), ValueError, "clip_by_global_norm: max_norm must lie"),
    (lambda: fo.clip_by_global_norm(math.nan), ValueError, "clip_by_global_norm: max_norm must lie"),
    (
        lambda: fo.adaptive_grad_clip(0.1, layout="tf"),
        ValueError,
        "layout must be one of 'torch', 'jax'",
    ),
    (lambda: fo.normalize_by_update_norm(eps=-1.0), ValueError, "normalize_by_update_norm: eps must lie"),
    (lambda: fo.scale(math.inf), ValueError, "scale: step_size must lie"),
    (lambda: fo.per_example_global_norm_clip([torch.ones(2)], -1.0), ValueError, "l2_norm_clip must lie"),
    (
        lambda: fo.per_example_global_norm_clip([torch.ones(2), torch.ones(3)], 1.0),
        ValueError,
        "number .* of examples",
    ),
    (lambda: fo.per_example_layer_norm_clip([torch.ones(())], 1.0), ValueError, "number .* of examples"),
    (lambda: fo.per_example_global_norm_clip([torch.ones(0, 3)], 1.0), ValueError, "number .* of examples"),
    (lambda: fo.per_example_global_norm_clip({}, 1.0), ValueError, "number .* of examples"),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=[message[:60] for _, _, message in BAD])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tensors_are_not_looked_at():
    """A check of a tensor's value would wait for its device and break tracing."""
    fo.adam(torch.tensor(0.1), b1=torch.tensor(7.0))
