"""Doctor: it names what would fail, and exits 1 where something would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modalign.cli import main
from modalign.doctor import Finding, examine


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.what: finding for finding in examine()}


def test_it_looks_at_every_core_package_and_extra(findings: dict[str, Finding]):
    core = set("av click jinja2 numpy pillow rich safetensors torch transformers".split())
    assert core | {"python", "onnxruntime", "pyarrow", "torchvision", "cache"} <= findings.keys()
    assert all(findings[name].ok and findings[name].found[0].isdigit() for name in core)


def test_it_measures_this_machine(findings: dict[str, Finding]):
    speed = findings["matrix product, float32"].found
    assert speed.endswith(" GFLOP/s")
    assert float(speed.split()[0]) > 0
    assert " of " in findings["threads"].found


def test_the_cache_it_names_is_the_one_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "not" / "yet"))
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["ok"], err) == (True, "")
    (cache,) = [entry for entry in report["findings"] if entry["what"] == "cache"]
    assert cache["found"].startswith(str(tmp_path / "not" / "yet"))
    assert not (tmp_path / "not").exists()


def test_a_cache_that_cannot_be_a_folder_is_bad_and_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("BAD  cache:"))
    assert "set MODALIGN_CACHE" in lines[place + 1]


def test_a_table_says_ok_or_bad_for_each(capsys: pytest.CaptureFixture[str]):
    main(["doctor"])
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("     ")]
    assert all(line.startswith(("ok   ", "BAD  ")) for line in lines)
