"""The report of a run: one page to read and forward, and the same figures as JSON."""

from modalign.report.contents import Hit, Report, SearchExample, Shown, StageSummary
from modalign.report.writing import LIMIT_BYTES, write_report

__all__ = [
    "LIMIT_BYTES",
    "Hit",
    "Report",
    "SearchExample",
    "Shown",
    "StageSummary",
    "write_report",
]
