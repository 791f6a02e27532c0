"""Precomputed vectors: every format, every way a file can be wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modalign.encoders import Encoder, Failure, load_encoder
from modalign.errors import CorruptError, DataError, UsageError

VALUES = np.arange(12, dtype=np.float64).reshape(4, 3) / 8
IDS = ["a", "b", "c d", "é"]


def opened(path: Path, query: str = "") -> Encoder:
    return load_encoder(f"vectors:{path}{query}", modality="sensor")


def write_ids(path: Path, ids: list[str]) -> None:
    path.with_suffix(".ids.txt").write_text("".join(f"{name}\n" for name in ids), "utf-8")


def write_npy(path: Path, ids: list[str] = IDS) -> None:
    np.save(path, VALUES)
    write_ids(path, ids)


def write_npz(path: Path, ids: list[str] = IDS) -> None:
    np.savez(path, vectors=VALUES, ids=np.array(ids))


def write_safetensors(path: Path, ids: list[str] = IDS) -> None:
    save_file({"vectors": VALUES}, path, metadata={"ids": json.dumps(ids)})


def write_parquet(path: Path, ids: list[str] = IDS, rows: list | None = None) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    from pyarrow import parquet

    table = pyarrow.table({"id": ids, "vector": VALUES.tolist() if rows is None else rows})
    parquet.write_table(table, path)


WRITERS = {
    ".npy": write_npy,
    ".npz": write_npz,
    ".safetensors": write_safetensors,
    ".parquet": write_parquet,
}


@pytest.fixture(params=sorted(WRITERS))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"v{request.param}"


def test_every_format_gives_its_vectors_by_id(path):
    WRITERS[path.suffix](path)
    features = opened(path).encode(["é", "a", "c d", "a"])
    assert features.values.dtype == np.float32
    np.testing.assert_array_equal(features.values, VALUES[[3, 0, 2, 0]])


def test_an_unknown_id_is_an_error_that_names_it_the_file_and_the_count(path):
    WRITERS[path.suffix](path)
    with pytest.raises(DataError, match=rf"^z: no vector has this id.*4 ids of .*v\{path.suffix}"):
        opened(path).encode(["a", "z"])


def test_ids_that_stand_twice_are_refused_with_their_rows(path):
    WRITERS[path.suffix](path, ["a", "b", "c", "b"])
    with pytest.raises(DataError, match="id 'b' stands in rows 1 and 3"):
        opened(path)


def test_a_file_cut_short_is_refused(path):
    WRITERS[path.suffix](path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptError, match=rf"v\{path.suffix}: cannot be read"):
        opened(path)


def test_an_empty_file_is_refused(path):
    path.write_bytes(b"")
    with pytest.raises(CorruptError, match="cannot be read"):
        opened(path)


def test_an_absent_file_is_named(path):
    with pytest.raises(DataError, match=rf"v\{path.suffix}: is no file"):
        opened(path)


def test_the_fingerprint_changes_with_the_content_and_not_with_the_place(path, tmp_path):
    WRITERS[path.suffix](path)
    moved = tmp_path / "moved" / f"w{path.suffix}"
    moved.parent.mkdir()
    WRITERS[path.suffix](moved)
    assert opened(moved).fingerprint == opened(path).fingerprint
    WRITERS[path.suffix](moved, [*IDS[:3], "other"])
    assert opened(moved).fingerprint != opened(path).fingerprint


def test_another_file_of_the_same_network_is_the_same_encoder(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    np.save(tmp_path / "b.npy", VALUES + 1)
    query = "?made_by=thermometer-v2"
    one, other = (opened(tmp_path / name, query) for name in ("a.npy", "b.npy"))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != opened(tmp_path / "a.npy", "?made_by=v3").fingerprint
    # The cache is keyed by content too, so that the vectors are not mixed up.
    assert one.content("0") != other.content("0")


def test_equal_vectors_are_equal_content_whatever_their_id(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
    encoder = opened(tmp_path / "a.npy")
    assert encoder.content("0") == encoder.content("2") != encoder.content("1")


def test_without_ids_the_row_number_is_the_id(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    encoder = opened(tmp_path / "a.npy")
    np.testing.assert_array_equal(encoder.encode(["3", "0"]).values, VALUES[[3, 0]])


@pytest.mark.parametrize("key", ["4", "-1", "01", "+1", "1.0", " 1", "²", "٣", "", "9" * 5000])
def test_only_a_row_number_in_its_plain_form_is_an_id(tmp_path, key):
    np.save(tmp_path / "a.npy", VALUES)
    with pytest.raises(DataError, match=r"expected one of the 4 ids of .* such as '0'"):
        opened(tmp_path / "a.npy").encode([key])


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i1", "u4", "i8", "?"])
def test_any_real_dtype_becomes_float32(tmp_path, dtype):
    values = np.array([[0, 1], [1, 1]]).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    features = opened(tmp_path / "a.npy").encode(["1", "0"])
    assert features.values.dtype == np.float32
    assert features.values.tolist() == [[1, 1], [0, 1]]


def test_bfloat16_is_read_from_safetensors(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([[1.5, -2.0], [0.0, 3.25]], dtype=torch.bfloat16)
    save_torch({"vectors": values}, tmp_path / "a.safetensors")
    features = opened(tmp_path / "a.safetensors").encode(["0", "1"])
    assert features.values.tolist() == [[1.5, -2.0], [0.0, 3.25]]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_large_files_are_mapped_not_read(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"a{suffix}")
    assert isinstance(opened(tmp_path / f"a{suffix}")._table.values, np.memmap)


def test_an_id_may_hold_any_sign_but_a_line_end(tmp_path):
    ids = ["a\u2028b", "c\x0bd", "e\tf", " g "]
    write_npy(tmp_path / "a.npy", ids)
    np.testing.assert_array_equal(opened(tmp_path / "a.npy").encode(ids).values, VALUES)


def test_too_few_ids_are_refused_with_both_counts(tmp_path):
    write_npy(tmp_path / "a.npy", ["a", "b", "c"])
    with pytest.raises(DataError, match="3 ids for 4 vectors"):
        opened(tmp_path / "a.npy")


def test_other_names_are_chosen_by_options(tmp_path):
    np.savez(tmp_path / "a.npz", emb=VALUES, names=np.array([7, 8, 9, 10]))
    encoder = opened(tmp_path / "a.npz", "?column=emb&id=names")
    np.testing.assert_array_equal(encoder.encode(["9"]).values, VALUES[[2]])


def test_an_absent_name_lists_those_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", emb=VALUES)
    with pytest.raises(DataError, match="holds no 'vectors', expected one of: emb"):
        opened(tmp_path / "a.npz")
    with pytest.raises(DataError, match="holds no 'key', expected one of: emb"):
        opened(tmp_path / "a.npz", "?column=emb&id=key")


def test_a_name_means_nothing_in_npy(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    with pytest.raises(UsageError, match=r"column=x has no meaning for \.npy"):
        opened(tmp_path / "a.npy", "?column=x")


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}, {}], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", vectors=VALUES, ids=np.array(IDS, object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(CorruptError, match=r"cannot be read \(.*[Oo]bject.*nothing pickled"):
            opened(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.zeros(3), r"shape \(3,\), expected \[N, D\]"),
        (np.zeros((1, 2, 3, 4)), r"shape \(1, 2, 3, 4\)"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        (np.zeros((2, 2), complex), "dtype complex128, expected real numbers"),
        (np.array([["a", "b"]]), "dtype <U1"),
    ],
)
def test_what_are_no_vectors_is_refused(tmp_path, values, what):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=what):
        opened(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_no_rows_are_a_table_without_ids(tmp_path, suffix):
    empty = np.zeros((0, 5), np.float32)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, empty)
    elif suffix == ".npz":
        np.savez(path, vectors=empty)
    else:
        save_file({"vectors": empty}, path)
    encoder = opened(path)
    assert encoder.encode([]).values.shape == (0, 5)
    with pytest.raises(DataError, match="expected one of the 0 ids"):
        encoder.encode(["0"])


@pytest.mark.parametrize(
    ("number", "what"), [(np.nan, "NaN or inf"), (np.inf, "NaN or inf"), (1e300, "NaN or inf"),
                         (7e4, "reaches 7e")]
)  # fmt: skip
def test_a_row_that_cannot_be_stored_is_a_failure_naming_its_id(tmp_path, number, what):
    values = VALUES.copy()
    values[2, 1] = number
    np.save(tmp_path / "a.npy", values)
    write_ids(tmp_path / "a.npy", IDS)
    results = list(opened(tmp_path / "a.npy").encode_stream(IDS, exact=True))
    assert [isinstance(result, Failure) for result in results] == [False, False, True, False]
    assert results[2].index == 2
    with pytest.raises(DataError, match=rf"^c d: its vector in .* {what}"):
        raise results[2].error


def test_failures_beyond_the_first_block_keep_their_index(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    keys = ["1"] * 4097 + ["9"] + ["2"]
    results = list(opened(tmp_path / "a.npy").encode_stream(keys, exact=False))
    assert [r.index for r in results if isinstance(r, Failure)] == [4097]
    assert results[4098].values.tolist() == [VALUES[2].tolist()]


def test_what_lies_in_the_padding_does_not_count(tmp_path):
    values = np.full((2, 3, 4), np.nan, np.float32)
    mask = np.array([[True, False, False], [True, True, False]])
    values[mask] = 1.5
    save_file({"vectors": values, "mask": mask}, tmp_path / "a.safetensors")
    features = opened(tmp_path / "a.safetensors").encode(["0", "1"])
    assert features.mask.tolist() == mask.tolist()
    assert features.values.tolist() == np.where(mask[:, :, None], values, 0).tolist()


def test_tokens_without_a_mask_are_all_valid(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
    encoder = opened(tmp_path / "a.npy")
    assert encoder.output == "tokens"
    assert encoder.encode(["1"]).mask.tolist() == [[True] * 3]


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (np.ones((2, 2), bool), r"mask is bool \(2, 2\), expected bool \(2, 3\)"),
        (np.ones((2, 3)), "mask is float64"),
        (np.array([[1, 1, 1], [0, 0, 0]], bool), "row 1 has no valid position"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path, mask, what):
    np.savez(tmp_path / "a.npz", vectors=np.zeros((2, 3, 4)), mask=mask)
    with pytest.raises(DataError, match=what):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("ids", "rows", "what"),
    [
        (["a", "b"], [[1.0], [1.0, 2.0]], "vector of id 'b' has 2 values, expected 1"),
        (["a", "b"], [[1.0], None], "column 'vector' is null in row 1"),
        (["a", None], [[1.0], [2.0]], "column 'id' is null in row 1"),
        (["a", "b"], [1.0, 2.0], "column of vectors is double, expected lists"),
        (["a", "b"], [["x"], ["y"]], "dtype object, expected real numbers"),
    ],
)
def test_rows_of_parquet_that_do_not_fit_are_named(tmp_path, ids, rows, what):
    write_parquet(tmp_path / "a.parquet", ids, rows)
    with pytest.raises(DataError, match=what):
        opened(tmp_path / "a.parquet")


def test_metadata_that_is_no_list_of_ids_is_refused(tmp_path):
    for text, what in (("{}", "is dict, expected a JSON list"), ("[", "cannot be read")):
        save_file({"vectors": VALUES}, tmp_path / "a.safetensors", metadata={"ids": text})
        with pytest.raises(CorruptError, match=what):
            opened(tmp_path / "a.safetensors")


def test_the_modality_must_be_given_and_the_error_says_how():
    with pytest.raises(UsageError, match=r"--encoder sensor=vectors:a\.npy"):
        load_encoder("vectors:a.npy")


def test_an_unknown_ending_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'\.pt' is unknown; known: \.npy, \.npz, \.parquet"):
        load_encoder("vectors:a.pt", modality="sensor")


def test_an_unknown_option_is_refused():
    with pytest.raises(UsageError, match="option 'ids' is unknown; known: column, id, made_by"):
        load_encoder("vectors:a.npy?ids=x", modality="sensor")


def test_a_hundred_thousand_rows_take_microseconds_each(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((100_000, 64), np.float32))
    keys = [str(row) for row in range(100_000)]
    encoder = opened(tmp_path / "a.npy")
    start = time.process_time()
    assert len(encoder.encode(keys)) == 100_000
    # 2-3 us where measured; one call of `prepare` for each would be about 20.
    assert time.process_time() - start < 1.2
