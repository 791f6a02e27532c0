"""Losses: pure functions of tensors."""

from modalign.losses.contrast import (
    bank_info_nce,
    directed_info_nce,
    info_nce,
    one_pass_info_nce,
)
from modalign.losses.pairwise import (
    distribution_matching,
    n_way_info_nce,
    product_of,
    sigmoid_loss,
)
from modalign.losses.prediction import prediction_loss
from modalign.losses.regularisers import (
    alignment,
    latent_mixup,
    neighbourhood_loss,
    uniformity,
)

__all__ = [
    "alignment",
    "bank_info_nce",
    "directed_info_nce",
    "distribution_matching",
    "info_nce",
    "latent_mixup",
    "n_way_info_nce",
    "neighbourhood_loss",
    "one_pass_info_nce",
    "prediction_loss",
    "product_of",
    "sigmoid_loss",
    "uniformity",
]
