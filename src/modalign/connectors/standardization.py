"""Bringing features of any encoder to mean 0 and deviation 1, dimension by dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardization(nn.Module):
    """Subtract a mean and divide by a deviation; 0 and 1 until `fit`.

    Args:
        feature_width: D_m of the encoder.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, feature_width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_width))
        self.register_buffer("deviation", torch.ones(feature_width))

    def forward(self, features: Tensor) -> Tensor:
        """Map float [..., D_m] to float [..., D_m]."""
        return (features - self.mean) / self.deviation

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set what features are standardised with.

        A dimension that hardly varies is centred but not scaled up: its deviation counts as
        at least a thousandth of the largest, and as 1 where nothing varies.

        Args:
            mean: float [D_m].
            deviation: float [D_m], >= 0.
        """
        largest = float(deviation.max())
        self.mean.copy_(mean)
        floor = torch.tensor(1e-3 * largest if largest > 0 else 1.0)
        self.deviation.copy_(torch.maximum(deviation, floor))
