"""Scoring: hub correction at query time, and similarities as probabilities."""

from modalign.scoring.calibration import (
    Calibration,
    cross_fitted,
    expected_calibration_error,
    fit_calibration,
    kept_precision,
    reliability,
    result_matches,
    threshold,
)
from modalign.scoring.hubs import (
    CANDIDATES,
    Bank,
    Centring,
    Compared,
    Correction,
    Csls,
    InverseConvolution,
    InvertedSoftmax,
    NoCorrection,
    choose_correction,
    correction_from_json,
)

__all__ = [
    "CANDIDATES",
    "Bank",
    "Calibration",
    "Centring",
    "Compared",
    "Correction",
    "Csls",
    "InverseConvolution",
    "InvertedSoftmax",
    "NoCorrection",
    "choose_correction",
    "correction_from_json",
    "cross_fitted",
    "expected_calibration_error",
    "fit_calibration",
    "kept_precision",
    "reliability",
    "result_matches",
    "threshold",
]
