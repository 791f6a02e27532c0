"""Writing a report: what the template shows is put together here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from modalign.errors import UsageError
from modalign.report import baselines, choices, curves, experts, figures, forecasts
from modalign.report.contents import Hit, Report, SearchExample
from modalign.report.shelf import Shelf, View
from modalign.storage import write_bytes, write_json

PAGE_FILE = "report.html"
FIGURES_FILE = "report.json"
LIMIT_BYTES = 30_000_000


@dataclass(frozen=True)
class Answer:
    """A hit and how it is shown."""

    hit: Hit
    view: View


@dataclass(frozen=True)
class Search:
    """A query, how it is shown, and its answers."""

    query: View
    answers: tuple[Answer, ...]

    @property
    def right_first(self) -> bool:
        """Whether the first answer belongs to the query."""
        return bool(self.answers) and self.answers[0].hit.right


@dataclass(frozen=True)
class SearchGroup:
    """The searches of one direction."""

    source: str
    target: str
    searches: tuple[Search, ...]

    @property
    def right_first(self) -> int:
        """How many searches found the right item first."""
        return sum(search.right_first for search in self.searches)


@dataclass(frozen=True)
class Matrix:
    """Directions as a table: rows ask, columns answer; None where nothing was measured."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    cells: tuple[tuple[Mapping[str, Any] | None, ...], ...]


def write_report(
    folder: Path, report: Report, *, limit_bytes: int = LIMIT_BYTES
) -> tuple[Path, Path]:
    """Write report.html, one file that shows all media, and report.json, the same figures.

    Each is written whole or not at all.

    Args:
        folder: Where to; made if absent.
        report: What to tell.
        limit_bytes: Bytes that media may take inside the page; files beyond that are linked
            where they lie, and the page says so.

    Returns:
        The two paths.

    Raises:
        DataError: A media file cannot be read.
        UsageError: `limit_bytes` is below 0.
    """
    if limit_bytes < 0:
        raise UsageError(
            f"report: limit_bytes is {limit_bytes}, expected 0 (link all media) or more",
            limit_bytes=limit_bytes,
        )
    shelf = Shelf(folder, limit_bytes=limit_bytes)
    page = render_page(report, shelf)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / PAGE_FILE, page.encode())
    write_json(folder / FIGURES_FILE, report.as_json(relative_to=folder))
    return folder / PAGE_FILE, folder / FIGURES_FILE


def render_page(report: Report, shelf: Shelf) -> str:
    """Return the page.

    Raises:
        DataError: A media file cannot be read.
    """
    searches = search_groups(report.searches, shelf)
    template = template_environment().get_template("report.html.jinja")
    return template.render(
        report=report,
        charts=[curves.stage_charts(s.log, best_step=s.best_step) for s in report.stages],
        encoded=sum(sum(stage.encoded.values()) for stage in report.stages),
        matrix=recall_matrix(report.directions),
        closed=baselines.by_direction(report.closed_form),
        closed_told=baselines.told(report.closed_form, report.directions),
        experts=experts.expert_map(report.routing),
        experts_told=experts.told(report.routing),
        forecasts=forecasts.forecast_charts(report.forecast),
        searches=searches,
        linked=len(shelf.linked),
    )


def template_environment() -> Environment:
    """Return what fills the templates: everything is escaped, and nothing may be undefined."""
    environment = Environment(
        loader=PackageLoader("modalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (
        figures.share,
        figures.small_share,
        figures.count,
        figures.duration,
        figures.arrow,
        experts.row_label,
        baselines.direction_name,
        choices.tried,
        choices.settings,
    ):
        environment.filters[write.__name__] = write
    environment.tests["behind"] = baselines.is_behind
    environment.tests["clearly_behind"] = baselines.is_clearly_behind
    environment.globals["drawing"] = curves
    environment.globals["map_drawing"] = experts
    return environment


def search_groups(searches: Sequence[SearchExample], shelf: Shelf) -> list[SearchGroup]:
    """Gather examples by direction, directions in the order they first appear in."""
    groups: dict[tuple[str, str], list[Search]] = {}
    for example in searches:
        answers = tuple(Answer(hit, shelf.view(hit.shown)) for hit in example.hits)
        search = Search(shelf.view(example.query), answers)
        groups.setdefault((example.source, example.target), []).append(search)
    return [SearchGroup(a, b, tuple(members)) for (a, b), members in groups.items()]


def recall_matrix(directions: Sequence[Mapping[str, Any]]) -> Matrix:
    """Return the directions as a table of modalities, in the order they first appear in."""
    known = {(line["from"], line["to"]): line for line in directions}
    sources = tuple(dict.fromkeys(source for source, _ in known))
    targets = tuple(dict.fromkeys(target for _, target in known))
    # One order for both sides, so that the diagonal is one.
    targets = tuple(sorted(targets, key=(*sources, *targets).index))
    cells = tuple(tuple(known.get((a, b)) for b in targets) for a in sources)
    return Matrix(sources, targets, cells)
