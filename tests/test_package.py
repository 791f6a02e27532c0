"""What `import modalign` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import version

import pytest

import modalign
from modalign.errors import DataError

HEAVY = {"PIL", "av", "onnxruntime", "pyarrow", "torch", "transformers"}
# The command line starts on the package's own names, errors and pairs alone.
LIGHT_MODULES = ["modalign", "modalign.errors", "modalign.pairs", "modalign.cli"]
TRIES = 5


def run_python(*arguments: str) -> str:
    call = [sys.executable, *arguments]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout


def seconds_of(*arguments: str) -> float:
    """The best of several runs: what a machine busy with other things adds is never negative."""
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run_python(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def top_level_modules_after(statement: str) -> set[str]:
    listing = run_python("-c", f"{statement}; import sys; print(*sys.modules)")
    return {name.partition(".")[0] for name in listing.split()}


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_loads_no_heavy_package(module):
    assert top_level_modules_after(f"import {module}") & HEAVY == set()


def test_the_measure_of_loaded_packages_sees_a_heavy_one():
    assert top_level_modules_after("import PIL.Image") & HEAVY == {"PIL"}


@pytest.mark.parametrize("arguments", [("-c", "import modalign"), ("-m", "modalign", "--help")])
def test_python_starts_at_most_0_3_s_later(arguments):
    assert seconds_of(*arguments) - seconds_of("-c", "pass") < 0.3


@pytest.mark.parametrize("name", modalign.__all__)
def test_every_public_name_resolves(name):
    assert getattr(modalign, name) is not None


def test_all_lists_every_name_that_the_package_can_load():
    assert set(modalign._HOMES) < set(modalign.__all__)
    assert sorted(modalign.__all__) == modalign.__all__


def test_dir_names_what_is_not_loaded_yet():
    listing = run_python("-c", "import modalign; print(*dir(modalign))")
    assert set(modalign.__all__) <= set(listing.split())


def test_a_public_name_is_the_very_one_of_its_module():
    assert modalign.DataError is DataError


def test_the_version_is_that_of_the_installed_package():
    assert modalign.__version__ == version("modalign")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'modalign' has no attribute 'search_all'"):
        modalign.search_all  # noqa: B018
