"""The file index.json: what the vectors of an index are, and which engine is wanted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from modalign.errors import CorruptError, DataError, UsageError
from modalign.gallery import header_sha256
from modalign.storage import read_json, write_json

FORMAT = 1
HEADER_FILE = "index.json"


@dataclass(frozen=True)
class Header:
    """What an index is.

    Attributes:
        modality: Of the items.
        width: D.
        dtype: Of the stored vectors.
        embedding: Hash of the weights the vectors passed through.
        encoder: Fingerprint of the encoder their features come from.
        identity: Of this index alone, 32 hex digits.
        engine: Its name; "exact" for none.
        settings: Of the engine, as they were asked for.
        media_root: Folder that the items' files lie in; None where they are none, or anywhere.
        format: Of the folder.
    """

    modality: str
    width: int
    dtype: str
    embedding: str
    encoder: str
    identity: str
    engine: str
    settings: dict[str, Any]
    media_root: str | None = None
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write it with its own hash."""
        stored = asdict(self)
        write_json(folder / HEADER_FILE, {**stored, "header_sha256": header_sha256(stored)})


def is_index(folder: Path) -> bool:
    """Return whether a folder is one that `build_index` wrote."""
    return (Path(folder) / HEADER_FILE).is_file()


def read_header(folder: Path) -> Header:
    """Read the header of an index.

    Raises:
        UsageError: The folder is no index.
        DataError: The index is of a newer format.
        CorruptError: The header is not what was written.
    """
    path = folder / HEADER_FILE
    if not is_index(folder):
        raise UsageError(
            f"{folder}: no index here (there is no {HEADER_FILE}), expected a folder that "
            "`modalign index` wrote; check the path",
            folder=folder,
        )
    stored = read_json(path)
    found = stored.get("format") if isinstance(stored, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise DataError(
            f"{path}: format {found}, this modalign reads {FORMAT}; upgrade modalign to read it",
            file=path,
            found=found,
        )
    names = [attribute.name for attribute in fields(Header)]
    if (
        found != FORMAT
        or stored.get("header_sha256") != header_sha256(stored)
        or not set(names) <= set(stored)
    ):
        raise CorruptError(
            f"{path}: is not what was written: its own hash does not fit; restore it from a "
            "backup, or build the index again",
            file=path,
        )
    return Header(**{name: stored[name] for name in names})
