"""Dropout that costs little on a CPU, where drawing the mask would take a fifth of a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shares are kept to this many parts: a byte is drawn for each element.
PARTS = 256


class Dropout(nn.Module):
    """Zero a share of the elements in training, and scale the others up.

    Source: Srivastava et al. 2014. Differs: on a CPU the mask is drawn a byte an element,
    eight from one 64-bit number, so the share is rounded to a 256th.

    Args:
        share: Elements zeroed, 0 <= share < 1.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Return x with elements dropped; x itself in eval mode."""
        cut = round(self.share * PARTS)
        if not self.training or cut == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share)
        return x * kept_bytes(x, cut).to(x.dtype).mul_(PARTS / (PARTS - cut))


def kept_bytes(x: Tensor, cut: int) -> Tensor:
    """Return a mask of x's shape, True with probability 1 - cut / 256, from torch's generator."""
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[: x.numel()].view(x.shape) >= cut
