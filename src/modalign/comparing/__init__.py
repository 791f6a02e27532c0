"""Recipes side by side: variants on the same features, measured on the same queries."""

from modalign.comparing.figures import explained, format_comparison
from modalign.comparing.runs import compare
from modalign.comparing.variants import STUDIES, Comparison, Variant, planned

__all__ = [
    "STUDIES",
    "Comparison",
    "Variant",
    "compare",
    "explained",
    "format_comparison",
    "planned",
]
