"""What recipe auto tried before it chose, as the page shows it.

Figures are those of `modalign.space.choosing`, as a stage records them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalign.space.choosing import told_apart

# Shares are recorded rounded.
ROUNDING = 2e-4
# What a closed form has to set, where it is not both.
SETTINGS = {"procrustes": (), "ridge": ("regularisation",), "subspace": ("regularisation",)}


@dataclass(frozen=True)
class Mix:
    """Members joined in some way, and how well that found the pairs that were held out.

    Attributes:
        shares: How much each member's cosine counts, in the order of the members; they sum to 1.
        mean_reciprocal_rank: Of both directions, in (0, 1].
        kept: Whether this one was kept.
    """

    shares: tuple[float, ...]
    mean_reciprocal_rank: float
    kept: bool


@dataclass(frozen=True)
class Tried:
    """All mixes, the best first, each once.

    Attributes:
        members: Their names; a number tells those of one kind apart.
        mixes: What was tried of them.
    """

    members: tuple[str, ...]
    mixes: tuple[Mix, ...]


def tried(chosen: Mapping[str, Any]) -> Tried | None:
    """Return the mixes that a choice was among; None where there was but one."""
    ranks: dict[tuple[float, ...], float] = {}
    for entry in chosen.get("tried", ()):
        total = sum(entry["weights"])
        shares = tuple(round(weight / total, 6) for weight in entry["weights"])
        ranks.setdefault(shares, entry["mean_reciprocal_rank"])
    if len(ranks) < 2:
        return None
    # Where members of one kind were tried, what was kept may be said of several mixes.
    alike = [shares for shares in ranks if is_kept(chosen, shares)]
    mixes = [Mix(shares, rank, alike == [shares]) for shares, rank in ranks.items()]
    best_first = sorted(mixes, key=lambda mix: -mix.mean_reciprocal_rank)
    return Tried(tuple(told_apart(chosen["candidates"])), tuple(best_first))


def is_kept(chosen: Mapping[str, Any], shares: Sequence[float]) -> bool:
    """Return whether the members that count, and how much, are those that were kept."""
    counting = [(n, s) for n, s in zip(chosen["candidates"], shares, strict=True) if s]
    return [name for name, _ in counting] == list(chosen["kept"]) and all(
        abs(share - kept) < ROUNDING
        for (_, share), kept in zip(counting, chosen["shares"], strict=True)
    )


def settings(chosen: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the closed forms' "regularisation" and "power" by name; None of what one lacks."""
    return {
        name: {
            key: value if key in SETTINGS.get(name, tuple(found)) else None
            for key, value in found.items()
        }
        for name, found in chosen.get("closed_forms", {}).items()
    }
