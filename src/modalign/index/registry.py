"""Which engines there are; other packages add theirs by the entry-point group `modalign.indexes`.

[project.entry-points."modalign.indexes"]
mine = "my_package.search:MyEngine"      # a modalign.index.contract.Engine
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from modalign.errors import UsageError, check_known
from modalign.index.contract import Engine

GROUP = "modalign.indexes"
# Search without an artefact; `Index` does it itself.
EXACT = "exact"
AUTO = "auto"
# From this many rows on an engine is faster than looking at all of them by more than it costs.
AUTO_ROWS = 20_000

OWN_ENGINES = {
    "faiss": (
        "modalign.index.faiss_engine:FaissEngine",
        "flat, ivf, hnsw and compressed kinds, in memory (extra [faiss])",
    ),
    "lancedb": (
        "modalign.index.lancedb_engine:LanceEngine",
        "on the disk or in object storage (extra [lancedb])",
    ),
    "qdrant": (
        "modalign.index.qdrant_engine:QdrantEngine",
        "on a server, or a folder for small sets (extra [qdrant])",
    ),
}


@dataclass(frozen=True)
class EngineEntry:
    """One engine: its name, its class as module:attribute, and who brings it."""

    name: str
    target: str
    summary: str
    source: str

    def load(self) -> type[Engine]:
        """Import and return the class."""
        module, _, attribute = self.target.partition(":")
        loaded: type[Engine] = getattr(importlib.import_module(module), attribute)
        return loaded


def known_engines(plugins: Iterable[EntryPoint] | None = None) -> dict[str, EngineEntry]:
    """Return every engine by name: our own and those installed packages bring.

    Args:
        plugins: Entry points of the group `modalign.indexes`; by default the installed ones.

    Raises:
        UsageError: A plugin takes a name that is taken.
    """
    engines = {
        name: EngineEntry(name, target, summary, "modalign")
        for name, (target, summary) in OWN_ENGINES.items()
    }
    for point in entry_points(group=GROUP) if plugins is None else plugins:
        source = point.dist.name if point.dist else point.value
        if point.name in engines or point.name in (EXACT, AUTO):
            owner = engines[point.name].source if point.name in engines else "modalign"
            raise UsageError(
                f"index engine name {point.name!r} is taken by {owner}, and {source} brings it "
                "again; uninstall one of them",
                name=point.name,
            )
        engines[point.name] = EngineEntry(point.name, point.value, f"from {source}", source)
    return engines


def engine_class(name: str, plugins: Iterable[EntryPoint] | None = None) -> type[Engine]:
    """Import an engine's class.

    Raises:
        UsageError: There is none of this name.
        MissingExtraError: Its package is not installed.
    """
    engines = known_engines(plugins)
    check_known(name, [*engines, EXACT], what="index engine")
    return engines[name].load()


def parse_engine(
    text: str, settings: Mapping[str, Any], *, rows: int
) -> tuple[str, dict[str, Any]]:
    """Return an engine's name and its settings, its kind among them.

    Raises:
        UsageError: The engine is unknown, or its kind is said twice and differently.
    """
    if text == AUTO:
        text = "faiss" if rows >= AUTO_ROWS and find_spec("faiss") else EXACT
    known = [*known_engines(), EXACT]
    name, _, kind = (text, "", "") if text in known else text.partition("-")
    check_known(name, known, what="index engine")
    chosen = dict(settings)
    if kind and chosen.setdefault("kind", kind) != kind:
        raise UsageError(
            f"index engine {text}: its kind is {kind}, and {chosen['kind']} is asked for; say one"
        )
    if name == EXACT and chosen:
        raise UsageError(
            f"index engine {text}: takes no settings, {', '.join(sorted(chosen))} given; leave "
            "them out"
        )
    return name, chosen
