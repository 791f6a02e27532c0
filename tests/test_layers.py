"""Imports run one way: a module imports only from its own layer and from those before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "modalign"

# From the ground up. A module or folder of the package is one layer; what is imported inside a
# function or for the types alone counts too.
LAYERS = (
    "errors",
    "storage",
    "pairs",
    "media",
    "worlds",
    "encoders",
    "features",
    "connectors",
    "losses",
    "recipes",
    "training",
    "gallery",
    "stores",
    "index",
    "evaluation",
    "scoring",
    "space",
    "comparing",
    "probing",
    "robustness",
    "tasks",
    "report",
    "demo",
    "doctor",
    "serve",
    "cli",
)
# Above all layers: the package's own names, and `python -m modalign`.
ROOTS = ("__init__", "__main__")


def module_files(package: Path) -> dict[str, Path]:
    """Every module by its dotted name below the package; the package itself is `__init__`."""
    files = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        files[".".join(parts)] = file
    return files


def import_graph(package: Path) -> dict[str, set[str]]:
    """Which modules of the package each one imports, by dotted name."""
    files = module_files(package)
    return {
        name: {
            found
            for target in imported_names(file, package)
            if (found := nearest_module(target, files)) not in (None, name)
        }
        for name, file in files.items()
    }


def imported_names(file: Path, package: Path) -> Iterator[str]:
    """The dotted names a file imports from the package, without the package's own name."""
    here = (package.name, *file.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join((*start, *filter(None, [node.module])))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == package.name:
                yield rest


def nearest_module(target: str, files: dict[str, Path]) -> str | None:
    """The module that holds `target`; the version is all that may be asked of the root."""
    if target == "__version__":
        return None
    while target and target not in files:
        target = target.rpartition(".")[0]
    return target or "__init__"


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def unknown_layers(package: Path) -> list[str]:
    layers = {layer_of(module) for module in module_files(package)}
    return sorted(layers - {*LAYERS, *ROOTS})


def upward_imports(package: Path) -> list[str]:
    rank = {layer: place for place, layer in enumerate((*LAYERS, *ROOTS))}
    return sorted(
        f"{module} imports {target}"
        for module, targets in import_graph(package).items()
        for target in targets
        if rank[layer_of(target)] > rank[layer_of(module)]
    )


def circles(package: Path) -> list[str]:
    """Modules that reach themselves by their imports, with the way round."""
    graph = import_graph(package)
    ways = (shortest_way_round(module, graph) for module in sorted(graph))
    return [" > ".join(way) for way in ways if way]


def shortest_way_round(start: str, graph: dict[str, set[str]]) -> list[str] | None:
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for target in sorted(graph[way[-1]]):
            if target == start:
                return [*way, start]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return None


def test_every_module_of_the_package_has_a_layer():
    assert unknown_layers(PACKAGE) == [], "add it to LAYERS, after what it imports"


def test_no_module_imports_from_a_later_layer():
    assert upward_imports(PACKAGE) == []


def test_no_module_reaches_itself_by_its_imports():
    assert circles(PACKAGE) == []


@pytest.fixture
def planted(tmp_path):
    """A package of three sound modules, to plant a fault in."""
    package = tmp_path / "modalign"
    (package / "encoders").mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "errors.py").write_text("import os.path\n", encoding="utf-8")
    (package / "pairs.py").write_text("from modalign.errors import DataError\n", encoding="utf-8")
    (package / "encoders" / "__init__.py").write_text("from .. import errors\n", encoding="utf-8")
    return package


def test_a_sound_package_passes(planted):
    assert import_graph(planted) == {
        "__init__": set(),
        "errors": set(),
        "pairs": {"errors"},
        "encoders": {"errors"},
    }
    assert (unknown_layers(planted), upward_imports(planted), circles(planted)) == ([], [], [])


@pytest.mark.parametrize(
    "planted_import",
    [
        "import modalign.encoders",
        "import modalign.encoders as adapters",
        "from modalign import encoders",
        "from modalign.encoders import load_encoder",
        "from .encoders import load_encoder",
        "from . import encoders",
        "def late():\n    from modalign.encoders import load_encoder",
        "if TYPE_CHECKING:\n    from modalign.encoders import Encoder",
    ],
)
def test_every_form_of_an_upward_import_is_found(planted, planted_import):
    (planted / "pairs.py").write_text(planted_import, encoding="utf-8")
    assert upward_imports(planted) == ["pairs imports encoders"]


def test_a_name_taken_from_the_package_itself_is_an_upward_import(planted):
    (planted / "pairs.py").write_text("from modalign import load_encoder", encoding="utf-8")
    assert upward_imports(planted) == ["pairs imports __init__"]


def test_the_version_may_be_taken_from_the_package_itself(planted):
    (planted / "pairs.py").write_text("from modalign import __version__", encoding="utf-8")
    assert upward_imports(planted) == []


def test_a_circle_inside_one_folder_is_found_with_its_way_round(planted):
    folder = planted / "encoders"
    (folder / "hub.py").write_text("from modalign.encoders.onnx import load", encoding="utf-8")
    (folder / "onnx.py").write_text("from .hub import load", encoding="utf-8")
    assert circles(planted) == [
        "encoders.hub > encoders.onnx > encoders.hub",
        "encoders.onnx > encoders.hub > encoders.onnx",
    ]


def test_a_module_without_a_layer_is_named(planted):
    (planted / "utils.py").write_text("", encoding="utf-8")
    assert unknown_layers(planted) == ["utils"]
