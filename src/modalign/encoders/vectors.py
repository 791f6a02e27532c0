"""Vectors that something else has computed, as an encoder: an item's value is a key into them.

    vectors:FILE.npy           rows; ids in FILE.ids.txt, one a line, or else "0", "1", ...
    vectors:FILE.npz           arrays `vectors` and `ids`, optionally `mask`
    vectors:FILE.parquet       columns `id` and `vector`
    vectors:FILE.safetensors   tensor `vectors`, optionally `mask`; ids in FILE.ids.txt or as a
                               JSON list under `ids` in the metadata

[N, D] are vectors, [N, L, D] are tokens. Options: `column`, `id` and `mask` name other arrays or
columns; `made_by` names the network behind the vectors, so that another file of the same
network counts as the same encoder.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modalign.encoders.contract import (
    LARGEST_STORED,
    Encoder,
    Failure,
    Features,
    batched,
    shortened,
    stack_features,
)
from modalign.encoders.registry import Spec, check_options
from modalign.errors import CorruptError, DataError, UsageError, import_extra
from modalign.storage import limit_mapped

OPTIONS = ("column", "id", "mask", "made_by")
# Rows gathered at once: enough to hide the cost of a call, small beside any file worth mapping.
BLOCK = 4096


@dataclass(frozen=True)
class Table:
    """What a file of vectors holds.

    Attributes:
        values: Any real dtype [N, D] or [N, L, D]; memory-mapped where the format allows.
        ids: One a row; None where the row's number is its id.
        mask: True at valid positions, bool [N, L]; None where all are.
    """

    values: np.ndarray
    ids: list[str] | None = None
    mask: np.ndarray | None = None


def load(
    target: str, *, modality: str | None = None, device: str = "cpu", **options: str
) -> PrecomputedVectors:
    """Open a file of vectors.

    Args:
        target: The file; its ending says the format.
        modality: What the vectors stand for; a file of numbers cannot tell.
        device: Not used: nothing is computed.
        options: `column`, `id`, `mask`, `made_by`, as above.

    Raises:
        UsageError: No modality is given, or the ending or an option is unknown.
        DataError: The file is missing, broken, or its ids do not fit its rows.
    """
    spec = str(Spec("vectors", target, options))
    check_options(options, OPTIONS, spec=spec)
    if modality is None:
        raise UsageError(
            f"encoder {spec}: the modality is not given, and vectors do not tell; name it, as in "
            f"--encoder sensor={spec}",
            spec=spec,
        )
    path = Path(target)
    if path.suffix not in READERS:
        raise UsageError(
            f"encoder {spec}: ending {path.suffix!r} is unknown; known: {', '.join(READERS)}",
            file=target,
        )
    if not path.is_file():
        raise DataError(f"{target}: is no file, expected vectors; look at the path", file=target)
    table = READERS[path.suffix](path, options)
    _check_table(table, path)
    return PrecomputedVectors(table, path, modality=modality, made_by=options.get("made_by"))


class PrecomputedVectors(Encoder):
    """Looks vectors up by key; what they mean is known to whoever computed them."""

    reads = "key"
    batch_size = BLOCK
    lookahead = BLOCK

    def __init__(self, table: Table, path: Path, *, modality: str, made_by: str | None) -> None:
        self._table = table
        self._path = path
        self._made_by = made_by
        ids = table.ids
        self._rows = None if ids is None else {name: row for row, name in enumerate(ids)}
        self.modality = modality
        self.spec = f"vectors:{path}"
        self.output = "vectors" if table.values.ndim == 2 else "tokens"
        self.width = int(table.values.shape[-1])

    def describe(self) -> dict[str, Any]:
        """Return the network that `made_by` names, or else the content of the file."""
        source = {"made_by": self._made_by} if self._made_by else {"content": self._file_sha256}
        return {"adapter": "vectors", "output": self.output, "width": self.width, **source}

    @cached_property
    def _file_sha256(self) -> str:
        digest = hashlib.sha256()
        for path in (self._path, _ids_beside(self._path)):
            # The ids are part of it: they say which vector a key means.
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def prepare(self, value: str) -> Features:
        """Return the vector of one key.

        Raises:
            DataError: No row has this id, or its vector is not finite or out of float16's range.
        """
        feature = self._gather([self._row_of(value)])
        self._check_range(feature, value)
        return feature

    def compute(self, inputs: Sequence[Any], *, rows: int, length: int) -> Features:
        """Join what is already computed."""
        return stack_features(inputs, width=self.width, output=self.output)

    def content(self, value: str) -> bytes:
        """Return the row's bytes with its dtype and shape: equal vectors are equal content."""
        row = self._row_of(value)
        if row % 256 == 0:  # asking at each row would cost more than the row
            limit_mapped([self._table.values])
        values: np.ndarray = self._table.values[row]
        head = f"{values.dtype.str}{values.shape}".encode()
        mask = b"" if self._table.mask is None else bytes(self._table.mask[row])
        return head + mask + values.tobytes()

    def encode_stream(self, values: Iterable[str], *, exact: bool) -> Iterator[Features | Failure]:
        """Gather rows by the block: at a million keys, a call for each would be the whole cost."""
        done = 0
        for keys in batched(values, BLOCK):
            rows = [self._find(key) for key in keys]
            block = self._gather([row for row in rows if row is not None])
            good = iter((_largest(block) <= LARGEST_STORED).tolist())
            place = 0
            for offset, row in enumerate(rows):
                if row is None or not next(good):
                    yield self._failure(keys[offset], done + offset)
                else:
                    yield block[place]
                place += row is not None
            done += len(keys)

    def _failure(self, key: str, index: int) -> Failure:
        try:
            self.prepare(key)
        except DataError as error:
            return Failure(index, error)
        raise AssertionError(f"{key} was refused in a block and taken alone")

    def _gather(self, rows: list[int]) -> Features:
        limit_mapped([self._table.values])
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as infinite
            values = np.asarray(self._table.values[rows]).astype(np.float32, copy=False)
        if self.output == "vectors":
            return Features(values)
        if self._table.mask is None:
            return Features(values, np.ones(values.shape[:2], bool))
        mask = self._table.mask[rows]
        values[~mask] = 0.0
        return Features(values, mask)

    def _find(self, key: str) -> int | None:
        if self._rows is not None:
            return self._rows.get(key)
        if not key.isdecimal():
            return None
        # "007" is no row number: one id for each row.
        row = int(key) if len(key) < 20 else len(self._table.values)
        return row if str(row) == key and row < len(self._table.values) else None

    def _row_of(self, key: str) -> int:
        row = self._find(key)
        if row is None:
            count = len(self._table.values)
            example = self._table.ids[0] if self._table.ids else "0"
            raise DataError(
                f"{shortened(key)}: no vector has this id, expected one of the {count:,} ids of "
                f"{self._path}, such as {shortened(example)!r}; add the vector",
                value=key,
                file=str(self._path),
            )
        return row

    def _check_range(self, feature: Features, key: str) -> None:
        largest = float(_largest(feature)[0])
        if largest <= LARGEST_STORED:
            return
        what = f"reaches {largest:.4g}" if np.isfinite(largest) else "holds NaN or infinity"
        raise DataError(
            f"{shortened(key)}: its vector in {self._path} {what}, expected finite values up to "
            f"{LARGEST_STORED:.0f}; mend the row",
            value=key,
            file=str(self._path),
        )


def _largest(block: Features) -> np.ndarray:
    """Return the largest magnitude of each row, NaN where there is one."""
    largest: np.ndarray = np.abs(block.values).max(axis=tuple(range(1, block.values.ndim)))
    return largest


def _ids_beside(path: Path) -> Path:
    return path.with_suffix(".ids.txt")


def _read_npy(path: Path, options: Mapping[str, str]) -> Table:
    _refuse_names(path, options)
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    return Table(values, _read_ids(path))


def _read_npz(path: Path, options: Mapping[str, str]) -> Table:
    try:
        # Opened here, because np.load leaves a broken archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _from_arrays(path, options, arrays, ids_name=options.get("id", "ids"))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error


def _from_arrays(
    path: Path, options: Mapping[str, str], arrays: Mapping[str, np.ndarray], *, ids_name: str
) -> Table:
    values = _named(path, arrays, options.get("column", "vectors"))
    mask = _optional_mask(path, arrays, options)
    if ids_name in arrays or "id" in options:
        ids = _named(path, arrays, ids_name)
        return Table(values, ids.astype(str).reshape(-1).tolist(), mask)
    return Table(values, _read_ids(path), mask)


def _read_safetensors(path: Path, options: Mapping[str, str]) -> Table:
    from safetensors import SafetensorError, safe_open

    try:
        # Opening checks the whole header: every tensor lies inside the file, none overlap.
        with safe_open(path, framework="np") as file:
            names, metadata = set(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    tensors = {name: _map_tensor(path, name) for name in names & _wanted(options)}
    values = _named(path, tensors, options.get("column", "vectors"))
    mask = _optional_mask(path, tensors, options)
    key = options.get("id", "ids")
    if key not in metadata:
        return Table(values, _read_ids(path), mask)
    return Table(values, _ids_of_metadata(path, key, metadata[key]), mask)


def _wanted(options: Mapping[str, str]) -> set[str]:
    return {options.get("column", "vectors"), options.get("mask", "mask")}


def _ids_of_metadata(path: Path, key: str, text: str) -> list[str]:
    try:
        ids = json.loads(text)
    except json.JSONDecodeError as error:
        raise _unreadable(path, error) from error
    if not isinstance(ids, list):
        raise CorruptError(
            f"{path}: metadata {key!r} is {type(ids).__name__}, expected a JSON list of ids",
            file=str(path),
        )
    return [str(name) for name in ids]


SAFETENSORS_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip


def _map_tensor(path: Path, name: str) -> np.ndarray:
    """Map one tensor of a checked safetensors file; the package itself would load it whole.

    Source:
        The safetensors format: 8 bytes header length, little-endian; a JSON header; the data,
        with `data_offsets` counted from the header's end.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_bytes))[name]
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise DataError(
            f"{path}: tensor {name!r} is {entry['dtype']}, expected one of "
            f"{', '.join(SAFETENSORS_DTYPES)}; convert it",
            file=str(path),
        )
    shape, dtype = tuple(entry["shape"]), np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
    start = 8 + header_bytes + entry["data_offsets"][0]
    values: np.ndarray = np.memmap(path, dtype, "r", offset=start, shape=shape)
    if entry["dtype"] != "BF16":
        return values
    # bfloat16 is the upper half of a float32. Not mapped: numpy has no such dtype.
    return (values.astype(np.uint32) << 16).view(np.float32)


def _read_parquet(path: Path, options: Mapping[str, str]) -> Table:
    pyarrow = import_extra("pyarrow", extra="parquet")
    parquet = import_extra("pyarrow.parquet", extra="parquet")
    id_name, vector_name = options.get("id", "id"), options.get("column", "vector")
    try:
        names = parquet.read_schema(path).names
        _check_name(path, id_name, names)
        _check_name(path, vector_name, names)
        columns = parquet.read_table(path, columns=[id_name, vector_name])
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    for column in (id_name, vector_name):
        if columns[column].null_count:
            row = columns[column].is_null().to_pylist().index(True)
            raise DataError(
                f"{path}: column {column!r} is null in row {row}, expected a value; drop the row",
                file=str(path),
                row=row,
            )
    ids = [str(name) for name in columns[id_name].to_pylist()]
    return Table(_matrix_of(path, columns[vector_name], ids), ids)


def _matrix_of(path: Path, column: Any, ids: list[str]) -> np.ndarray:
    """Return a list column as a matrix [N, D]."""
    compute = import_extra("pyarrow.compute", extra="parquet")
    arrow_types = import_extra("pyarrow.types", extra="parquet")
    kind = column.type
    is_list = [arrow_types.is_list, arrow_types.is_large_list, arrow_types.is_fixed_size_list]
    if not any(check(kind) for check in is_list):
        raise DataError(
            f"{path}: the column of vectors is {kind}, expected lists of numbers; name another "
            "with column=",
            file=str(path),
        )
    lengths = compute.list_value_length(column).to_numpy()
    odd = np.flatnonzero(lengths != lengths[:1])
    if len(odd):
        row = int(odd[0])
        raise DataError(
            f"{path}: the vector of id {ids[row]!r} has {lengths[row]} values, expected "
            f"{lengths[0]} as in the first row; mend or drop the row",
            file=str(path),
            row=row,
        )
    width = int(lengths[0]) if len(lengths) else 0
    flat: np.ndarray = compute.list_flatten(column).to_numpy()
    return flat.reshape(len(lengths), width)


READERS: dict[str, Callable[[Path, Mapping[str, str]], Table]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".safetensors": _read_safetensors,
}


def _read_ids(path: Path) -> list[str] | None:
    """Read the ids beside a file, one a line; None where there are none."""
    beside = _ids_beside(path)
    if not beside.is_file():
        return None
    try:
        text = beside.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(beside, error) from error
    # Not splitlines(): it also splits at signs that may stand inside an id.
    return text.removesuffix("\n").split("\n") if text else []


def _optional_mask(
    path: Path, arrays: Mapping[str, np.ndarray], options: Mapping[str, str]
) -> np.ndarray | None:
    name = options.get("mask", "mask")
    if name in arrays or "mask" in options:
        return _named(path, arrays, name)
    return None


def _named(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    _check_name(path, name, arrays)
    return arrays[name]


def _check_name(path: Path, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise DataError(
            f"{path}: holds no {name!r}, expected one of: {', '.join(sorted(known)) or 'nothing'}; "
            "name it with column=, id= or mask=",
            file=str(path),
            name=name,
        )


def _refuse_names(path: Path, options: Mapping[str, str]) -> None:
    for name in ("column", "id", "mask"):
        if name in options:
            raise UsageError(
                f"{path}: option {name}={options[name]} has no meaning for .npy, which holds one "
                "array without a name; leave it out",
                option=name,
            )


def _unreadable(path: Path, error: Exception) -> CorruptError:
    return CorruptError(
        f"{path}: cannot be read ({shortened(str(error), 160)}), expected plain numbers as "
        f"{path.suffix.removeprefix('.')}, nothing pickled; write the file again",
        file=str(path),
    )


def _check_table(table: Table, path: Path) -> None:
    """Check what is known without reading the vectors themselves."""
    values = table.values
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: vectors are of dtype {values.dtype}, expected real numbers", file=str(path)
        )
    if values.ndim not in (2, 3) or 0 in values.shape[1:]:
        raise DataError(
            f"{path}: vectors have shape {values.shape}, expected [N, D], or [N, L, D] for tokens",
            file=str(path),
        )
    if table.ids is not None:
        _check_ids(table.ids, len(values), path)
    if table.mask is not None:
        _check_mask(table.mask, values, path)


def _check_ids(ids: list[str], rows: int, path: Path) -> None:
    if len(ids) != rows:
        raise DataError(
            f"{path}: {len(ids):,} ids for {rows:,} vectors, expected one each", file=str(path)
        )
    if len(set(ids)) == rows:
        return
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in first:
            raise DataError(
                f"{path}: id {shortened(name)!r} stands in rows {first[name]} and {row}, expected "
                "every id once; rename or drop one",
                file=str(path),
                row=row,
            )
        first[name] = row


def _check_mask(mask: np.ndarray, values: np.ndarray, path: Path) -> None:
    if mask.dtype != bool or values.ndim != 3 or mask.shape != values.shape[:2]:
        raise DataError(
            f"{path}: mask is {mask.dtype} {mask.shape}, expected bool {values.shape[:2]} for "
            f"tokens [N, L, D]; vectors are {values.shape}",
            file=str(path),
        )
    if not mask.any(axis=1).all():
        row = int(np.flatnonzero(~mask.any(axis=1))[0])
        raise DataError(
            f"{path}: row {row} has no valid position, expected at least one; drop the row",
            file=str(path),
            row=row,
        )
