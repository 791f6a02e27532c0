"""Rows held out of the training rows, for what is to be settled without validation rows."""

from __future__ import annotations

import numpy as np

from modalign.space.paired import PairedTables

# Share of the training pairs that is held out, and the most where that would be too few.
HELD_SHARE = 0.15
MOST_SHARE = 0.3
# By fewer pairs than this little can be told apart.
ENOUGH = 60


def parted(paired: PairedTables, *, seed: int) -> tuple[PairedTables, PairedTables]:
    """Part pairs into those to train on and those held out, with all that is tied to them.

    Pairs that share an item stay together, unless more than half of all hang together so: then
    pairs of one item of one modality stay together, and the other modality's items may lie in
    both parts.

    Args:
        paired: The training pairs.
        seed: Of the draw.

    Returns:
        Both parts; all pairs twice where they cannot be parted.
    """
    out = _drawn(_groups(paired), seed=seed)
    if out.all() or not out.any():
        return paired, paired
    return rows_of_pairs(paired, ~out), rows_of_pairs(paired, out)


def _groups(paired: PairedTables) -> np.ndarray:
    """Return a group's number for every pair, int64 [P]; none holds more than half of them."""
    pairs = paired.pairs
    for groups in (_components(pairs), pairs[:, 0], pairs[:, 1]):
        numbers: np.ndarray = np.unique(groups, return_inverse=True)[1]
        if np.bincount(numbers).max() <= len(pairs) / 2:
            return numbers
    return np.arange(len(pairs))


def _drawn(groups: np.ndarray, *, seed: int) -> np.ndarray:
    """Draw whole groups until they hold the wanted share of pairs; bool [P]."""
    total = len(groups)
    wanted = max(1, round(min(max(HELD_SHARE * total, ENOUGH), MOST_SHARE * total)))
    sizes = np.bincount(groups)
    count, taken = 0, []
    for group in np.random.default_rng([seed, 11]).permutation(len(sizes)):
        # One that is larger than what is missing is passed over, not taken by half.
        if count + sizes[group] <= 1.2 * wanted and count < wanted:
            taken.append(group)
            count += sizes[group]
    return np.isin(groups, taken or [int(sizes.argmin())])


def _components(pairs: np.ndarray) -> np.ndarray:
    """Return a group's number for every pair: pairs that share an item are of one group."""
    group = np.arange(len(pairs))
    while True:
        before = group.copy()
        for side in (0, 1):
            items = pairs[:, side]
            least = np.full(items.max() + 1, len(group))
            np.minimum.at(least, items, group)
            group = least[items]
        if np.array_equal(before, group):
            return group


def rows_of_pairs(paired: PairedTables, chosen: np.ndarray) -> PairedTables:
    """Keep some pairs, bool [P], and the items that occur in them."""
    pairs = paired.pairs[chosen]
    first, a = np.unique(pairs[:, 0], return_inverse=True)
    second, b = np.unique(pairs[:, 1], return_inverse=True)
    tables = {
        paired.first: paired.tables[paired.first].subset(first),
        paired.second: paired.tables[paired.second].subset(second),
    }
    return PairedTables(paired.first, paired.second, tables, np.stack([a, b], axis=1))
