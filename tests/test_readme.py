"""The README's promises: its Python runs as it stands, its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modalign.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    environment = {**os.environ, "MODALIGN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("True\n")


def test_every_command_named_exists():
    named = set(re.findall(r"(?:^|`|&& )modalign ([a-z]+)", TEXT, re.MULTILINE))
    assert named >= {"align", "add", "embed", "search", "evaluate", "verify"}
    assert named <= set(COMMANDS)


def test_every_bench_command_named_is_there():
    for name in re.findall(r"bench/[a-z_]+\.py", TEXT):
        assert (ROOT / name).is_file(), name
