"""Spaces: fitted connectors with their provenance, as a chain of immutable stages."""

from modalign.space.aligning import Job
from modalign.space.searching import Found, QueryPart
from modalign.space.space import Space, align, load_space

__all__ = ["Found", "Job", "QueryPart", "Space", "align", "load_space"]
