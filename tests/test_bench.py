"""The scripts of bench/ run, on sizes too small to measure anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = {
    "step": ["--batch", "8", "--rounds", "1", "--width", "16"],
    "maps": ["--width", "16", "--queries", "3", "--batch", "8"],
    "store": ["--data", "nowhere", "--rows", "5000", "--width", "8", "--rounds", "1"],
    "memory": ["--rows", "200", "--width", "8", "--validation", "0.1"],
    "bits": ["--data", "nowhere", "--rows", "3", "--items", "2"],
    "latency": ["--gallery", "50", "--queries", "10"],
    "index": ["--rows", "400"],
    "losses": ["--batch", "8", "--width", "16", "--rounds", "1"],
}


def run_script(name: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    script = REPOSITORY / "bench" / f"{name}.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--json", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


@pytest.mark.parametrize("name", TINY)
def test_every_figure_is_measured_or_says_why_it_is_not(name, tmp_path):
    report = run_script(name, *TINY[name], cwd=tmp_path)
    assert report["figures"]
    assert report["options"]["seed"] == 0
    for figure in report["figures"]:
        skipped = figure["measured"].startswith("skipped: ")
        assert skipped or figure["details"], figure["name"]
        if skipped:
            assert figure["reached"] is None


def test_rows_keep_their_bits_through_the_connector(tmp_path):
    figures = run_script("bits", *TINY["bits"], cwd=tmp_path)["figures"]
    connector = [figure for figure in figures if figure["name"].startswith("embed_features")]
    assert [figure["details"]["same"] for figure in connector] == [3, 3]


def test_all_scripts_report_in_one_table(tmp_path):
    ran = subprocess.run(
        [sys.executable, str(REPOSITORY / "bench" / "run.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(name in ran.stdout for name in TINY)
