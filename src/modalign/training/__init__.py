"""Training: the only loop, and how it draws batches of pairs.

Nothing in a run depends on what was drawn before: batch and dropout are functions of the
seed and the step. So a run killed anywhere goes on from its checkpoint to the same bits.
"""

from modalign.training.batches import Batch, PairBatches
from modalign.training.loop import FitResult, Objective, fit

__all__ = ["Batch", "FitResult", "Objective", "PairBatches", "fit"]
