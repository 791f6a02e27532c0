"""A private copy of a store, for engines that cannot open one without writing into it.

Hard links would not do: an engine that writes into a linked file writes into the store.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from modalign.errors import DataError
from modalign.stores.contract import folder_files


class Snapshot:
    """A copy that lasts until `close`, or until the process ends by whatever but a kill -9."""

    def __init__(self, folder: Path, *, wanted: Callable[[Path], bool] | None = None) -> None:
        """Copy a folder.

        Args:
            folder: Of the store.
            wanted: Says of a file, relative to the folder, whether it is copied; all by default.

        Raises:
            DataError: A file cannot be read, the disk is full, or somebody wrote meanwhile.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="modalign-store-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        names = [file.relative_to(folder) for file in folder_files(folder)]
        try:
            _copy(folder, [name for name in names if not wanted or wanted(name)], self.folder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the copy; a second time does nothing."""
        self._remove()


def _copy(source: Path, names: Sequence[Path], target: Path) -> None:
    before = _states(source, names)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            # Without its mode: the copy of a file nobody may write must be one the engine may.
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise DataError(
                f"{source / name}: cannot be copied to {target} ({error.strerror}), and its engine "
                "cannot open it without writing; make room there, or name another place with "
                "TMPDIR",
                file=source / name,
            ) from error
    if _states(source, names) != before:
        raise DataError(
            f"{source}: was written to while it was copied, expected a store at rest; stop the "
            "writer, or attach a copy of your own",
            file=source,
        )


def _states(source: Path, names: Sequence[Path]) -> list[tuple[int, int] | None]:
    return [_state(source / name) for name in names]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
