"""Attaching a store that is there: its vectors, as they are, become a space's gallery.

A map is trained from a new modality into the space of the stored vectors, and searches through
the store's own engine. The store is read: no file of it changes, which checksums prove.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from modalign.encoders import Encoder
from modalign.encoders.contract import batched
from modalign.errors import CorruptError, DataError, MismatchError, UsageError
from modalign.features.store import differences
from modalign.gallery import Hits
from modalign.pairs import Pairs
from modalign.recipes import AltMoERecipe, Recipe, named_recipe
from modalign.space import aligning
from modalign.space.aligning import Job
from modalign.space.encoded import EncodedPairs
from modalign.space.families import unit_rows
from modalign.space.space import Space, load_space
from modalign.storage import LOCK_FILE, building, check_free, sweep, write_json
from modalign.stores import KINDS, Store, StoreSpec, open_store
from modalign.stores.contract import UNIT_TOLERANCE
from modalign.stores.encoder import BLOCK, EXAMPLES, StoreVectors

PROOF_FILE = "attached.json"
# Queries that measure the store's own engine, at most.
ENGINE_QUERIES = 1000
ENGINE_ANSWERS = 10


@dataclass(frozen=True)
class AttachedStore:
    """A store as a gallery of a space.

    Attributes:
        store: Open.
        modality: What its vectors stand for.
        embedding: Hash of what they passed through: of the store's description.
    """

    store: Store
    modality: str
    embedding: str

    @property
    def where(self) -> str:
        """How messages name it."""
        return self.store.name

    def search(self, queries: np.ndarray, k: int, *, source: str | None = None) -> Hits:
        """Search through the store's own engine.

        Returns:
            Hits whose similarity is the cosine, whatever the engine's metric: its vectors have
            length 1 where that is another, of which attaching has seen those of the pairs.

        Raises:
            MismatchError: A similarity is none of vectors of length 1.
        """
        hits = self.store.search(unit_rows(np.asarray(queries, np.float32)), k)
        if self.store.metric == "l2":
            # Of unit vectors |q - v|^2 = 2 - 2 q.v; the engine gives its negative.
            hits = replace(hits, similarity=1 + hits.similarity / 2)
        largest = np.abs(hits.similarity[np.isfinite(hits.similarity)]).max(initial=0.0)
        if largest > 1 + UNIT_TOLERANCE:
            raise MismatchError(
                f"{self.where}: gave a similarity of {largest:.4g} by its metric "
                f"{self.store.metric}, expected at most 1: not all of its vectors have length 1, "
                "so its order is not the order of cosines; attach a copy whose vectors are scaled "
                "to length 1, or one that searches by cosine",
                similarity=float(largest),
            )
        return hits

    def __len__(self) -> int:
        return self.store.count

    def result_vectors(self, hits: Hits, query: int) -> np.ndarray:
        """Return the stored vectors of the items found for one of the queries, float32 [k, D]."""
        ids, vectors = self.store.vectors([found for found in hits.ids[query] if found])
        if len(ids) < sum(1 for found in hits.ids[query] if found):
            raise CorruptError(
                f"{self.where}: gave {len(ids)} vectors for the results it had found, expected all "
                "of them; look whether it is being written to",
                where=self.where,
            )
        return vectors

    def shown(self, hits: Hits) -> list[list[str | None]]:
        """Return the text or path stored beside each hit, None where there is none."""
        return [self.store.values(ids) for ids in hits.ids]


def is_store(text: str) -> bool:
    """Return whether a gallery is named as a store is, KIND:PATH."""
    return text.partition(":")[0] in KINDS and not Path(text).exists()


def open_attached(space: Space, spec: str) -> AttachedStore:
    """Open a store as the gallery of the modality that was attached from it.

    Raises:
        MismatchError: No modality of the space was attached from such a store.
        DataError: The store is not there or broken.
    """
    store = open_store(absolute(spec))
    for modality in space.modalities:
        known = space.stage_of(modality).record["encoders"][modality]
        if known["fingerprint"] == StoreVectors(store, modality=modality).fingerprint:
            return AttachedStore(store, modality, space.embedding_sha256(modality))
    specs = [known["spec"] for stage in space.stages for known in stage.record["encoders"].values()]
    found = store.describe()
    store.close()
    raise MismatchError(
        f"{spec}: {found['kind']}, width {found['width']}, metric {found['metric']}, is not what "
        f"space {space.folder} was attached to, expected one of {', '.join(specs)}; search with "
        "the space made for this store, or attach it",
        spec=spec,
    )


def absolute(spec: str) -> str:
    """Return a store's spec with its whole paths: a space is used from anywhere."""
    parsed = StoreSpec.parse(spec)
    head, mark, query = spec.partition("?")
    if Path(parsed.path).exists():
        head = head.replace(f":{parsed.path}", f":{Path(parsed.path).resolve()}", 1)
    options = [
        f"ids={quote(str(Path(parsed.options['ids']).resolve()))}" if part[:4] == "ids=" else part
        for part in query.split("&")
    ]
    return f"{head}{mark}{'&'.join(options)}"


def attach(
    spec: str,
    pairs: Pairs,
    encoder: Encoder,
    *,
    out: Path | str,
    recipe: str | Recipe = "alt-moe",
    **options: Any,
) -> tuple[Space, dict[str, Any]]:
    """Train a map from a modality into the space of a store's vectors.

    Interrupted, nothing is left: neither in `out` nor beside it. What was encoded stays cached.

    Args:
        spec: KIND:PATH[#COLLECTION] of the store; see `open_store`.
        pairs: Of the encoder's modality and of ids in the store.
        encoder: The new modality's; the stored side needs none.
        out: The space's folder; it must not exist yet.
        recipe: A recipe of directed maps, or its name.
        options: Further fields of `Job`: seed, device, cache, skip_errors, progress.

    Returns:
        The space, and what is proved: the store's description, its checksums before and after,
        and recall through its own engine on the pairs' validation rows.

    Raises:
        UsageError: `out` is there, the recipe is of a shared space, or the pairs do not have
            these two modalities.
        DataError: No id of the pairs is in the store, or rows are too few.
        MismatchError: The store does not search by the cosine.

    Source: arXiv:2409.05929, section 3: the gallery is the target's raw vectors.
    """
    out, (new, stored) = Path(out), both_sides(pairs, encoder)
    name = recipe if isinstance(recipe, str) else "custom"
    chosen = attaching_recipe(recipe, new, stored)
    check_free(out)
    with open_store(absolute(spec)) as store:
        before = store.checksums()
        vectors = StoreVectors(store, modality=stored)
        check_some_known(pairs, store, stored)
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent, name=out.name)
        with building(out) as work:
            encoders = {new: encoder, stored: vectors}
            job = Job(chosen, name, **options)
            encoded = aligning.align(pairs, encoders, out=work, job=job)
            (work / LOCK_FILE).unlink(missing_ok=True)
            space = load_space(work, device=job.device)
            measured = engine_recall(space, store, encoded, source=new, target=stored)
            store.close()
            proof = proof_of(store, before, measured)
            write_json(work / PROOF_FILE, proof)
    space = load_space(out, device=job.device)
    space.use_encoder(new, encoder)
    return space, proof


def both_sides(pairs: Pairs, encoder: Encoder) -> tuple[str, str]:
    """Return the new modality and the stored one.

    Raises:
        UsageError: The pairs do not join the encoder's modality to one of ids.
    """
    others = [modality for modality in pairs.modalities if modality != encoder.modality]
    if len(others) != 1 or len(pairs.modalities) != 2:
        raise UsageError(
            f"attach joins {encoder.modality} to one column of ids, the pairs name "
            f"{', '.join(pairs.modalities)}; name both columns, and nothing else"
        )
    return encoder.modality, others[0]


def attaching_recipe(recipe: str | Recipe, new: str, stored: str) -> AltMoERecipe:
    """Return the recipe with the one direction that a store is searched in.

    Raises:
        UsageError: The recipe is of a shared space, in which raw vectors do not lie.
    """
    chosen = named_recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(chosen, AltMoERecipe):
        raise UsageError(
            f"recipe {recipe if isinstance(recipe, str) else chosen.family}: makes a shared space, "
            "in which stored vectors would have to be embedded anew; attach with alt-moe"
        )
    wanted = f"{new}>{stored}"
    if chosen.directions == "all":
        return chosen.changed({"directions": wanted})
    if wanted not in chosen.directions.replace(" ", "").split(","):
        raise UsageError(
            f"directions {chosen.directions}: {wanted} is not among them, and it is what searches "
            "the store; name it, or leave directions out"
        )
    return chosen


def check_some_known(pairs: Pairs, store: Store, stored: str) -> None:
    """Raise a DataError where no id of the pairs is in the store."""
    ids = pairs.items[stored].values
    # A block at a time: the first one settles it as a rule.
    if any(store.vectors(block)[0] for block in batched(ids, BLOCK)):
        return
    there = ", ".join(repr(name) for name in store.ids_sample(EXAMPLES))
    raise DataError(
        f"{pairs.source.name}: none of its {len(ids):,} {stored} ids is in store {store.name}: "
        f"the pairs have {', '.join(repr(name) for name in ids[:EXAMPLES])}, the store {there}; "
        f"name the pairs' column with --column {stored}=COLUMN, or the store's ids with "
        f"?{id_option(store.kind)}=",
        file=pairs.source,
    )


def id_option(kind: str) -> str:
    """Return the option by which a kind of store is told where its ids are."""
    return next((name for name in ("id", "ids") if name in KINDS[kind].options), "id")


def engine_recall(
    space: Space, store: Store, encoded: EncodedPairs, *, source: str, target: str
) -> dict[str, Any]:
    """Search the whole store through its own engine by the pairs' validation rows."""
    right = right_values(encoded.pairs, source, target, split="validation")
    rows = sorted(right)[:ENGINE_QUERIES]
    features = encoded.tables[source].take(np.array(rows, np.int64))
    gallery = AttachedStore(store, target, space.embedding_sha256(target))
    hits = space.search_features(gallery, features, modality=source, k=ENGINE_ANSWERS)
    return {
        "from": source,
        "to": target,
        "queries": len(rows),
        "gallery": store.count,
        **recall_among(hits.ids, [right[row] for row in rows], ks=(1, 5, ENGINE_ANSWERS)),
    }


def right_values(
    pairs: Pairs, source: str, target: str, *, split: str | None = None
) -> dict[int, set[str]]:
    """Return the values of the targets that belong to each item of the source, by its number."""
    values = pairs.items[target].values
    right: dict[int, set[str]] = {}
    for item, partner in pairs.positives(source, target, split=split).tolist():
        right.setdefault(item, set()).add(values[partner])
    return right


def recall_among(
    answers: Sequence[Sequence[str | None]], right: Sequence[set[str]], *, ks: Sequence[int]
) -> dict[str, float]:
    """Return the share of queries with a right answer among the first k, as recall_at_k.

    Args:
        answers: What was found for each query, the nearest first.
        right: What answers each query.
        ks: How many answers count.
    """
    hits = [
        [answer in wanted for answer in found] for found, wanted in zip(answers, right, strict=True)
    ]
    return {f"recall_at_{k}": float(np.mean([any(found[:k]) for found in hits])) for k in ks}


def proof_of(
    store: Store, before: Mapping[str, str], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what attaching proved of a store that is closed again."""
    after = store.checksums()
    return {
        "store": {"spec": store.name, **store.describe()},
        "unchanged": before == after,
        "changed": differences(dict(before), after),
        "checksums": {"before": dict(before), "after": after},
        "through_store": dict(measured),
    }
