"""What a gradient scaler leaves to the step of a fused optimizer."""

from collections.abc import Iterable

import torch
from torch import Tensor


def unscale(gradients: Iterable[Tensor], scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Divide the gradients by the scale, in place, as torch's fused kernels do, unless infinities were found."""
    if scale is None:
        return
    for gradient in gradients:
        divisor = scale.to(gradient.device)
        if found_inf is not None:
            divisor = torch.where(found_inf.to(gradient.device) == 1, 1, divisor)
        gradient.div_(divisor)
