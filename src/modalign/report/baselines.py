"""What a closed form finds where the space searches, as the page tells it.

Figures are those of `modalign.report.formulas.closed_forms_of`, as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modalign.report.figures import share

# What is said where the rows measured are some that the closed form has seen.
SEEN = {
    "validation": "which are those measured here: that favours it a little",
    "train": "and what is measured here are the rows that it was fitted to",
    "all": "and the rows that it was fitted to are among those measured here",
}


def by_direction(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what the closed form found, by "image->text"; empty where there is none."""
    return {direction_name(line): line for line in found.get("directions", ())}


def told(found: Mapping[str, Any], directions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in sentences what the closed form is, where the space is behind, and what has none.

    Args:
        found: Of `closed_forms_of`; may be empty.
        directions: What the space found.
    """
    closed = by_direction(found)
    sentences = []
    if closed:
        seen = f", {SEEN[found['split']]}" if found["split"] in SEEN else ""
        sentences = [
            "Closed form: regularised canonical correlation (CCA), a formula that is fitted to "
            "the same training pairs; nothing is trained. Its settings were chosen on the "
            f"validation rows{seen}.",
            *compared(closed, directions),
        ]
    return [
        *sentences,
        *(
            f"No closed form for {' and '.join(entry['modalities'])} ({entry['why']})."
            for entry in found.get("left_out", ())
        ),
    ]


def compared(
    closed: Mapping[str, Mapping[str, Any]], directions: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say where the space finds less than the closed form, and where chance may explain that.

    Args:
        closed: By direction.
        directions: What the space found.
    """
    both = [(line, other) for line in directions if (other := closed.get(direction_name(line)))]
    behind = [pair for pair in both if is_behind(*pair)]
    clear = [versus(*pair) for pair in behind if is_clearly_behind(*pair)]
    close = [versus(*pair) for pair in behind if not is_clearly_behind(*pair)]
    if not behind:
        return ["The space finds as much as the closed form or more wherever both were measured."]
    sentences = []
    if clear:
        sentences.append(
            f"The space finds less than the closed form from {', '.join(clear)}: there the formula "
            "(recipe closed-form) serves better than what was trained."
        )
    if close:
        sentences.append(
            f"The space is behind the closed form from {', '.join(close)}, though within the 95 % "
            "interval of what it finds itself: chance may explain that."
        )
    return sentences


def is_behind(line: Mapping[str, Any], closed: Mapping[str, Any]) -> bool:
    """Return whether the space finds less in a direction than the closed form does."""
    return bool(line["recall_at_1"] < closed["recall_at_1"])


def is_clearly_behind(line: Mapping[str, Any], closed: Mapping[str, Any]) -> bool:
    """Return whether it does by more than the interval of what the space finds holds."""
    return bool(line["interval_95"][1] < closed["recall_at_1"])


def direction_name(line: Mapping[str, Any]) -> str:
    """Return "image->text"."""
    return f"{line['from']}->{line['to']}"


def versus(line: Mapping[str, Any], closed: Mapping[str, Any]) -> str:
    """Return both recalls of a direction in words."""
    recalls = f"{share(line['recall_at_1'])} against {share(closed['recall_at_1'])}"
    return f"{line['from']} to {line['to']} ({recalls})"
