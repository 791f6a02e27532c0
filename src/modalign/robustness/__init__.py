"""How much recall queries lose that are not as clean as those of training."""

from modalign.robustness.perturbing import PICTURE_PERTURBATIONS, TEXT_PERTURBATIONS
from modalign.robustness.trials import measure_robustness

__all__ = ["PICTURE_PERTURBATIONS", "TEXT_PERTURBATIONS", "measure_robustness"]
