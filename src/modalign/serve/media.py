"""Files of items, and of them only what lies where an index says its media lie.

A path comes from an index's own table, never from a request. It is followed to its end before it is
opened: what is no file below the root, a symbolic link out of it among them, is not there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from modalign.serve.refusals import NotThereError

# How far into a file its kind shows.
HEAD_BYTES = 64
# What is sent, by how a file begins: (place, bytes, type). What a browser would run (HTML, SVG,
# PDF) is not among it.
SIGNATURES = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"\xff\xf2", "audio/mpeg"),
    (0, b"\xff\xf1", "audio/aac"),
    (0, b"\xff\xf9", "audio/aac"),
)
# RIFF files say what they are behind their length.
RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}


@dataclass(frozen=True)
class MediaFile:
    """A file that may be sent.

    Attributes:
        path: Where it is, without links.
        media_type: By what it begins with.
        state: Its size and times.
    """

    path: Path
    media_type: str
    state: os.stat_result

    @property
    def etag(self) -> str:
        """What changes whenever the file does."""
        return f'"{self.state.st_mtime_ns:x}-{self.state.st_size:x}-{self.state.st_ino:x}"'


def find_media(value: str | None, root: Path | None) -> MediaFile:
    """Return the file of an item.

    Args:
        value: Of the item: a path, relative ones below the root.
        root: Folder it must lie in, itself without links.

    Raises:
        NotThereError: There is no such file below the root, or it is of a type that is not sent.
    """
    if value is None or root is None:
        raise NotThereError("media: this index has no files to show")
    try:
        path = Path(os.path.realpath(root / value, strict=True))
        if not path.is_relative_to(root) or not path.is_file():
            raise NotThereError("media: the item's file is not where its index says media lie")
        # Not followed: it was a file a moment ago.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:
        raise NotThereError("media: the item's file cannot be opened") from error
    with os.fdopen(descriptor, "rb") as file:
        media_type = sniffed(file.read(HEAD_BYTES))
        state = os.fstat(file.fileno())
    if media_type is None:
        raise NotThereError("media: the item's file is no picture, sound or video that is shown")
    return MediaFile(path, media_type, state)


def sniffed(head: bytes) -> str | None:
    """Return the type of a file by its first bytes; None where it is on no list."""
    if head[:4] == b"RIFF":
        return RIFF.get(head[8:12])
    for place, signature, media_type in SIGNATURES:
        if head[place : place + len(signature)] == signature:
            return media_type
    return None
