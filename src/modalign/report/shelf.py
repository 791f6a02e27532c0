"""Media in a page: inside it while there is room, beside it after that."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from modalign.errors import DataError
from modalign.report.contents import Shown, relative_path

# By ending: what shows it, and its media type.
MEDIA_TYPES = {
    ".png": ("image", "image/png"),
    ".jpg": ("image", "image/jpeg"),
    ".jpeg": ("image", "image/jpeg"),
    ".gif": ("image", "image/gif"),
    ".webp": ("image", "image/webp"),
    ".wav": ("audio", "audio/wav"),
    ".mp3": ("audio", "audio/mpeg"),
    ".ogg": ("audio", "audio/ogg"),
    ".flac": ("audio", "audio/flac"),
    ".mp4": ("video", "video/mp4"),
    ".webm": ("video", "video/webm"),
}


@dataclass(frozen=True)
class View:
    """How an item is shown.

    Attributes:
        shown: The item.
        kind: "text", "image", "audio", "video", or "file" for one a browser cannot show.
        address: A data URI or a relative link; empty for a text.
        linked: Whether the file lies beside the page.
    """

    shown: Shown
    kind: str
    address: str = ""
    linked: bool = False


class Shelf:
    """Puts media into a page up to a number of bytes.

    Args:
        folder: Where the page will lie; links start there.
        limit_bytes: Bytes that all embedded media may take in the page.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder = folder
        self.room = limit_bytes
        self.linked: set[Path] = set()

    def view(self, shown: Shown) -> View:
        """Return how to show an item.

        Raises:
            DataError: Its file cannot be read.
        """
        if isinstance(shown.value, str):
            return View(shown, "text")
        path = shown.value
        kind, media_type = MEDIA_TYPES.get(path.suffix.lower(), ("file", ""))
        try:
            address = self._embedded(path, media_type) if media_type else None
            if address is None:
                path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}), expected the file of "
                f"{shown.modality} {shown.id}; look at the path, or leave the item out",
                file=path,
            ) from error
        if address is not None:
            return View(shown, kind, address)
        self.linked.add(path)
        return View(shown, kind, quote(relative_path(path, self.folder).as_posix()), linked=True)

    def _embedded(self, path: Path, media_type: str) -> str | None:
        """Return a data URI, None where there is no room for it."""
        start = f"data:{media_type};base64,"
        size = len(start) + 4 * -(-path.stat().st_size // 3)
        if size > self.room:
            return None
        self.room -= size
        return start + base64.b64encode(path.read_bytes()).decode()
