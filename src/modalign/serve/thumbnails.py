"""Small pictures of pictures and clips: made once, kept in the user's cache by content."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from PIL import Image

from modalign.errors import DataError
from modalign.media import read_frames, read_image
from modalign.serve.media import MediaFile
from modalign.serve.refusals import NotThereError
from modalign.storage import sha256_file, write_bytes

SIDE = 384
QUALITY = 80
# Hashes of files that are remembered while neither their size nor their time changes.
REMEMBERED = 100_000


class Thumbnails:
    """WEBP pictures of at most `SIDE` pixels a side.

    Args:
        folder: Where they are kept; made when the first is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = Lock()

    def path_of(self, file: MediaFile) -> Path:
        """Return the thumbnail of a file, made if it is not there.

        Raises:
            NotThereError: A sound has none; nor has what cannot be decoded.
        """
        if not file.media_type.startswith(("image/", "video/")):
            raise NotThereError("thumbnail: a sound has no picture")
        sha256 = self._sha256(file)
        path = self.folder / sha256[:2] / f"{sha256}-{SIDE}.webp"
        if not path.is_file():
            data = thumbnail(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        return path

    def _sha256(self, file: MediaFile) -> str:
        key = (str(file.path), file.etag)
        with self._lock:
            known = self._hashes.get(key)
        if known is None:
            known = sha256_file(file.path)
            with self._lock:
                self._hashes[key] = known
                while len(self._hashes) > REMEMBERED:
                    self._hashes.popitem(last=False)
        return known


def thumbnail(file: MediaFile) -> bytes:
    """Return a picture, or the middle frame of a clip, as a small WEBP.

    Raises:
        NotThereError: It cannot be decoded.
    """
    try:
        if file.media_type.startswith("image/"):
            pixels = read_image(file.path)
        else:
            (pixels,) = read_frames(file.path, count=1)
    except DataError as error:
        raise NotThereError("thumbnail: the item's file cannot be decoded") from error
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY)
    return out.getvalue()
