"""What `--index` may name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'modalign[serve]'")

from modalign.errors import UsageError
from modalign.gallery import Gallery
from modalign.index import build_index
from modalign.serve.indexes import each_of, open_served


def gallery(folder: Path) -> Gallery:
    return Gallery.write(
        folder,
        modality="image",
        width=2,
        embedding="e",
        encoder="x",
        ids=["a"],
        vectors=[np.ones((1, 2), np.float16)],
    )


def test_a_folder_of_indexes_and_galleries_stands_for_all_of_them(tmp_path):
    build_index(gallery(tmp_path / "two"), tmp_path / "one")
    gallery(tmp_path / ".three.partial")
    (tmp_path / "notes").mkdir()
    (tmp_path / "list.txt").write_text("x", encoding="utf-8")
    found = each_of(str(tmp_path))
    assert found == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert [open_served(each).name for each in found] == ["one", "two"]


def test_an_index_or_a_named_one_is_itself(tmp_path):
    gallery(tmp_path / "two")
    for text in (str(tmp_path / "two"), f"name={tmp_path}", str(tmp_path / "none")):
        assert each_of(text) == [text]


def test_a_folder_without_any_is_refused_as_it_was_named(tmp_path):
    (tmp_path / "notes").mkdir()
    (text,) = each_of(str(tmp_path))
    with pytest.raises(UsageError, match="no gallery here"):
        open_served(text)
