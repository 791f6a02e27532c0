"""Scoring: hub correction at query time, and similarities as probabilities."""

from modalign.scoring.calibration import (
    Calibration,
    cross_fitted,
    expected_calibration_error,
    fit_calibration,
    reliability,
    result_matches,
    threshold,
)
from modalign.scoring.hubs import (
    CANDIDATES,
    Correction,
    Csls,
    InvertedSoftmax,
    NoCorrection,
    choose_correction,
    correction_from_json,
    rerank,
)

__all__ = [
    "CANDIDATES",
    "Calibration",
    "Correction",
    "Csls",
    "InvertedSoftmax",
    "NoCorrection",
    "choose_correction",
    "correction_from_json",
    "cross_fitted",
    "expected_calibration_error",
    "fit_calibration",
    "reliability",
    "rerank",
    "result_matches",
    "threshold",
]
