"""What closed forms say beside a space: what they find on its rows, what more pairs would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modalign.errors import DataError, ModalignError
from modalign.evaluation import Direction
from modalign.features.encoding import Progress
from modalign.probing.trials import LEAST_ITEMS, closed_form, forecast_pairs
from modalign.space import Space
from modalign.space.encoded import EncodedPairs, places_of_pairs, split_as_trained
from modalign.space.paired import PairedTables
from modalign.space.stages import Stage

MEMBER = "cca"
# Those of a stage that a closed form is fitted to, and whose settings it is chosen by.
FITTED_SPLITS = ("train", "validation")


def closed_forms_of(
    space: Space,
    encoded: EncodedPairs,
    directions: Sequence[Direction],
    *,
    split: str | None,
    trained_on: Sequence[EncodedPairs],
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure what a formula finds between modalities that were trained together.

    It is fitted to the pairs that trained them, its settings are chosen on the validation rows of
    these, and it is measured on the rows that the space was measured on.

    Args:
        space: Of any family.
        encoded: The pairs that the space was measured on.
        directions: What it found there.
        split: The rows measured; None: all.
        trained_on: Pairs; each stage's own are known among them by the hash of their file.
        seed: Of what the closed form draws.
        progress: Told of every two modalities.

    Returns:
        "member"; "split"; "directions" as `evaluate --json` prints them; "left_out": of
        modalities without one, "modalities" and "why". Empty where no two of the directions'
        modalities were trained together.
    """
    stages = {frozenset(way): stage for stage in space.stages for way in stage.record["directions"]}
    wanted = [(each.source, each.target) for each in directions]
    # Both ways between two modalities are of one closed form.
    joined = list(dict.fromkeys(both for way in wanted if (both := frozenset(way)) in stages))
    found: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for done, both in enumerate(joined, start=1):
        way = next(way for way in wanted if set(way) == both)
        try:
            train, held = rows_of_stage(stages[both], trained_on, *way)
            measured = rows_measured(encoded, *way, split)
            both_ways = closed_form(train, held, MEMBER, seed=seed, measured=measured)
            found += [each.as_json() for each in both_ways if (each.source, each.target) in wanted]
        except ModalignError as error:
            left_out.append({"modalities": list(way), "why": str(error)})
        progress("closed form", done, len(joined), " and ".join(way))
    if not joined:
        return {}
    shown = {"member": MEMBER, "split": split or "all"}
    return {**shown, "directions": found, "left_out": left_out}


def rows_of_stage(
    stage: Stage, trained_on: Sequence[EncodedPairs], first: str, second: str
) -> tuple[PairedTables, PairedTables]:
    """Return the training and the validation rows of a stage between two of its modalities.

    Raises:
        DataError: They are not among the pairs, or too few.
        UsageError: A column names their splits and was not read.
    """
    record = stage.record["pairs"]
    own = [
        encoded
        for encoded in trained_on
        if encoded.pairs.sha256 == record["sha256"]
        and {first, second} <= set(encoded.pairs.modalities)
    ]
    if not own:
        names = ", ".join(encoded.pairs.source.name for encoded in trained_on)
        raise DataError(
            f"{names}: not the pairs that {first} and {second} were trained on, expected "
            f"{record['source']} as it was then; report on that one"
        )
    pairs = split_as_trained(own[0].pairs, [record])
    there, then = (
        [sizes.get(name, 0) for name in FITTED_SPLITS]
        for sizes in (pairs.split_sizes(), record["rows"])
    )
    if there != then:
        raise DataError(
            f"{pairs.source.name}: {there[0]} training and {there[1]} validation rows are left, "
            f"expected {then[0]} and {then[1]} as in training; mend the items that are missing now"
        )
    return fitted_rows(replace(own[0], pairs=pairs), first, second)


def fitted_rows(
    encoded: EncodedPairs, first: str, second: str
) -> tuple[PairedTables, PairedTables]:
    """Return the training and the validation rows between two modalities.

    Raises:
        DataError: There are fewer than `LEAST_ITEMS` pairs to train on, or no validation rows.
    """
    train, held = (encoded.paired(first, second, split) for split in FITTED_SPLITS)
    if len(train.pairs) < LEAST_ITEMS or not len(held.pairs):
        raise DataError(
            f"{encoded.pairs.source.name}: {len(train.pairs)} pairs of {first} and {second} to "
            f"train on and {len(held.pairs)} to validate by, expected {LEAST_ITEMS} or more and "
            "some; give more pairs"
        )
    return train, held


def rows_measured(
    encoded: EncodedPairs, first: str, second: str, split: str | None
) -> PairedTables:
    """Return the rows that `Space.evaluate_encoded` measures, items without a partner too.

    Args:
        encoded: Pairs.
        first: A modality.
        second: Another.
        split: Which rows; None: all.
    """
    pairs = encoded.pairs
    members = {name: pairs.members(name, split=split) for name in (first, second)}
    tables = {name: encoded.tables[name].subset(kept) for name, kept in members.items()}
    positives = places_of_pairs(pairs, members, first, second, split=split)
    return PairedTables(first, second, tables, positives)


def forecast_of(
    space: Space, encoded: EncodedPairs, *, seed: int, progress: Progress
) -> dict[str, Any]:
    """Forecast the first stage's recall; nothing where the pairs do not allow it."""
    first = space.stages[0].modalities[:2]
    if len(first) < 2 or not set(first) <= set(encoded.pairs.modalities):
        return {}
    try:
        train, held = fitted_rows(encoded, first[0], first[1])
        # One draw: a page is not to take minutes; `modalign forecast` draws three.
        return forecast_pairs(train, held, seeds=[seed], wanted=None, progress=progress)
    except DataError:
        return {}
