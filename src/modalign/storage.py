"""Files that are whole or not there at all: every artefact is written through this module.

A file is written under a temporary name in its own folder, flushed, fsynced and renamed over
the old one; then the folder is fsynced. Whoever is killed in between leaves the old file whole
and a temporary one that `sweep` removes. A folder is built the same way: `building`.

Writers of temporary files hold a lock on them until they are renamed, so that `sweep` tells
those of a killed process from those of a living one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import logging
import mmap
import os
import secrets
import shutil
import tokenize
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from modalign.errors import CorruptError, DataError, ShapeError, UsageError

# Ends the name of all that is not finished.
TEMPORARY = ".partial"
LOCK_FILE = ".modalign.lock"
# Of mapped files, the libraries among them, this much may be resident.
MAPPED_BYTES = 512 * 2**20

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PLACE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)
# All that numpy's reader of headers lets through from a hostile one.
_BAD_HEADER = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
)

logger = logging.getLogger(__name__)


# Writing ----------------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole and durable when this returns.

    Raises:
        UsageError: The folder does not exist or may not be written.
        DataError: The disk is full; the old file is as it was.
    """
    with writing(path, size=len(data)) as handle:
        handle.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, in ASCII and in the order given.

    Raises:
        UsageError: `value` holds a NaN or an infinity, or see `write_bytes`.
        DataError: The disk is full.
    """
    write_bytes(path, _dumped(value, path, indent=2))


def _dumped(value: Any, path: Path, *, indent: int | None = None) -> bytes:
    try:
        # ASCII, because the name of a file may hold bytes that are no UTF-8.
        return json.dumps(value, indent=indent, allow_nan=False).encode("ascii") + b"\n"
    except ValueError as error:
        raise UsageError(f"{path}: {error}; expected finite numbers", file=path) from error


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line.

    Raises:
        UsageError: A value holds a NaN or an infinity, or see `write_bytes`.
        DataError: The disk is full.
    """
    with writing(path) as handle:
        for value in values:
            handle.write(_dumped(value, path))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy.

    Raises:
        UsageError: The array holds Python objects, or see `write_bytes`.
        DataError: The disk is full.
    """
    array = np.asarray(array)
    if array.ndim == 0:
        raise ShapeError(f"{path}: the array has no axes, expected one at least", file=path)
    save_array_blocks(path, [array], shape=array.shape, dtype=array.dtype)


def save_array_blocks(
    path: Path, blocks: Iterable[np.ndarray], *, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Write an array as .npy that is larger than memory, block of rows by block.

    Args:
        path: Where to; the name is taken as it is.
        blocks: Rows in order, each [n, *shape[1:]] of `dtype`.
        shape: Of the whole array.
        dtype: Of the whole array; no Python objects.

    Raises:
        ShapeError: The blocks do not make up `shape`; nothing is written.
        UsageError: `dtype` holds Python objects, or see `write_bytes`.
        DataError: The disk is full.
    """
    if dtype.hasobject:
        raise UsageError(
            f"{path}: the array holds Python objects, expected numbers or text", file=path
        )
    rows = 0
    with writing(path, size=prod(shape) * dtype.itemsize) as handle:
        _write_array_header(handle, shape, dtype)
        for block in blocks:
            if block.dtype != dtype or block.shape[1:] != shape[1:]:
                raise ShapeError(
                    f"{path}: block of rows {block.dtype} {block.shape} after row {rows}, "
                    f"expected {dtype} of shape [n, *{shape[1:]}]",
                    file=path,
                )
            # Not np.save: a full disk would be an error without its number.
            handle.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            rows += len(block)
        if rows != shape[0]:
            raise ShapeError(f"{path}: {rows} rows came, expected {shape[0]}", file=path)


def _write_array_header(handle: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(int(length) for length in shape),
    }
    np.lib.format.write_array_header_1_0(handle, header)


@contextmanager
def writing(path: Path, *, size: int | None = None) -> Iterator[BinaryIO]:
    """Give a handle to write a file to, which takes its place when the block ends well.

    Args:
        path: Where to; its folder must exist.
        size: Bytes to come where they are known, for the message of a full disk.

    Yields:
        A binary handle on the temporary file; its `name` is that file's path.

    Raises:
        UsageError: The folder does not exist or may not be written.
        DataError: The disk is full; the old file is as it was, the temporary one is removed.
    """
    path = Path(path)
    temporary, handle = _open_temporary(path)
    try:
        with _full_disk(path, temporary, size):
            with handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
                _replace(temporary, path)
            sync_folder(path.parent)
    finally:
        # Renamed, or given up.
        temporary.unlink(missing_ok=True)


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Open a file no one else has, and lock it, so that no sweep takes it for a leftover."""
    while True:
        temporary = _temporary_name(path)
        try:
            handle = temporary.open("xb")
        except OSError as error:
            _raise_no_place(path, error)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle.fileno()).st_nlink:
            return temporary, handle
        # Swept between opening and locking.
        handle.close()


def _temporary_name(path: Path) -> Path:
    # The name is cut, for it may be as long as names can be.
    return path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}{TEMPORARY}"


def _replace(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except IsADirectoryError as error:
        raise UsageError(f"{path}: is a folder, expected a file", file=path) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk(path: Path, temporary: Path, size: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            needed = size or _size_of(temporary)
            raise DataError(
                f"{path}: the disk is full ({error.strerror}); free {needed:,} bytes"
                f"{'' if size else ' or more'} and run the same command again, finished work "
                "is kept",
                file=path,
                needed=needed,
            ) from error
        if error.errno == errno.EFBIG:
            raise DataError(
                f"{path}: larger than this file system or `ulimit -f` allows a file to be; "
                "choose another folder or raise the limit, and run the same command again",
                file=path,
            ) from error
        raise


def _size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; 0 where it is gone."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _raise_no_place(path: Path, error: OSError) -> NoReturn:
    if error.errno in _FULL:
        raise DataError(
            f"{path}: the disk is full ({error.strerror}); free some space and run the same "
            "command again, finished work is kept",
            file=path,
            needed=0,
        ) from error
    if error.errno in _NO_PLACE:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); expected a folder that exists and "
            "may be written to",
            file=path,
        ) from error
    raise error


# Folders ----------------------------------------------------------------------------------


@contextmanager
def building(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which takes its place when the block ends well.

    Args:
        final: Where to; the folder it lies in must exist.
        replace: Take the place of a folder that is there; it is deleted.

    Yields:
        The temporary folder.

    Raises:
        UsageError: `final` is there and not empty, or cannot be written.
        DataError: The disk is full; the temporary folder is removed.
    """
    final = Path(final)
    check_free(final, replace=replace)
    temporary = _temporary_name(final)
    try:
        temporary.mkdir()
    except OSError as error:
        _raise_no_place(final, error)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with _full_disk(final, temporary, None):
            yield temporary
            publish_folder(temporary, final, replace=replace)
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(final: Path, *, replace: bool = False) -> None:
    """Raise a UsageError where a folder cannot be published; see `building`."""
    if final.is_dir() and (replace or not any(final.iterdir())):
        return
    if final.exists():
        raise UsageError(
            f"{final}: is there already; choose another folder, or delete it first", file=final
        )


def publish_folder(temporary: Path, final: Path, *, replace: bool = False) -> None:
    """Make all that is in a folder durable, then rename it into its place.

    Args:
        temporary: The finished folder, on the same file system as `final`.
        final: Its place: free, or an empty folder.
        replace: Take the place of a folder that is there. On Linux the two are exchanged at
            once; elsewhere there is a moment in which neither is there.

    Raises:
        UsageError: `final` is there already.
    """
    for folder, _, files in os.walk(temporary):
        for name in files:
            _sync_file(Path(folder) / name)
        sync_folder(Path(folder))
    if replace and final.exists():
        _take_place(temporary, final)
    else:
        try:
            temporary.rename(final)
        except OSError as error:
            if error.errno in _TAKEN:
                check_free(final)
            raise
    sync_folder(final.parent)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(temporary: Path, final: Path) -> None:
    """Put one folder where another is, and delete the other."""
    old = temporary
    if not _exchange(temporary, final):
        old = _temporary_name(final)
        final.rename(old)
        temporary.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(old)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at once; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    if renameat2(here, names[0], here, names[1], exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def sweep(folder: Path, *, name: str = "") -> list[Path]:
    """Remove what killed writers left in a folder, not in the folders below it.

    What a living writer is at work on stays.

    Args:
        folder: One of ours; in somebody else's say `name`.
        name: Of the file or folder that was being written; by default any.

    Returns:
        The files and folders removed.
    """
    removed = []
    for path in sorted(Path(folder).glob(f".{glob.escape(name[:40])}*{TEMPORARY}")):
        # Another sweep, or the writer itself, may be faster.
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)
    return removed


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep other processes that ask for the same lock out of a folder.

    The lock ends with its process, however that ends. Asking twice in one thread waits forever.

    Args:
        folder: What to lock; made where it is not there.
        wait: Wait for the other process, with a logged warning, instead of raising.

    Raises:
        UsageError: Another process holds the lock and `wait` is off, or the folder cannot be
            written.
    """
    path = Path(folder) / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        raise UsageError(f"{folder}: is a file, expected a folder", file=folder) from error
    except OSError as error:
        _raise_no_place(path, error)
    try:
        _lock(descriptor, folder, wait=wait)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        # The file stays: whoever waits for it holds it open.
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace") or "unknown"
        if not wait:
            raise UsageError(
                f"{folder}: process {holder} is at work in it; wait until it ends, or choose "
                "another folder",
                folder=folder,
                holder=holder,
            ) from error
        logger.warning("%s: waiting for process %s, which is at work in it", folder, holder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


# Reading ----------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: The file is missing or cannot be read.
        CorruptError: The file is no JSON.
    """
    return _parsed(read_bytes(path), path)


def read_json_lines(path: Path) -> list[Any]:
    """Read a file of one JSON value a line.

    Raises:
        DataError: The file is missing or cannot be read.
        CorruptError: A line is no JSON; the message names the first such line.
    """
    data = read_bytes(path)
    lines = data.split(b"\n")
    if lines.pop():
        raise CorruptError(f"{path}: ends within line {len(lines) + 1}; restore it", file=path)
    return [_parsed(line, path, row) for row, line in enumerate(lines, 1)]


def _parsed(data: bytes, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = str(path) if line is None else f"{path}, line {line}"
        raise CorruptError(
            f"{where}: is no JSON ({error}); restore the file, or delete it and run the command "
            "that wrote it again",
            file=path,
            line=line,
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        _raise_unreadable(path, error)


def _raise_unreadable(path: Path, error: OSError) -> NoReturn:
    raise DataError(
        f"{path}: cannot be read ({error.strerror}), expected a file; check the path", file=path
    ) from error


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read a .npy file; nothing in it is ever unpickled.

    Args:
        path: The file.
        mapped: Leave the rows on the disk until they are asked for; the array is read-only.

    Raises:
        DataError: The file is missing or cannot be read.
        CorruptError: The file is no .npy, is shorter or longer than its header says, or holds
            Python objects.
    """
    try:
        with Path(path).open("rb") as handle:
            shape, order, dtype = _read_array_header(handle, path)
            start = handle.tell()
            _check_length(path, os.fstat(handle.fileno()).st_size - start, shape, dtype)
            if not mapped:
                flat = np.fromfile(handle, dtype, prod(shape))
                return flat.reshape(shape, order=order)
    except OSError as error:
        _raise_unreadable(path, error)
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order=order)


def limit_mapped(arrays: Iterable[np.ndarray]) -> None:
    """Give the pages of mapped arrays back where the process holds too many; reads map them again.

    Pages of mapped files count as resident memory. How many one read maps is the kernel's choice,
    64 KiB to 2 MiB, so they are counted and not estimated; where the system does not tell, they
    stay until it needs them.

    Args:
        arrays: What may be given back; arrays in memory are left as they are.
    """
    if mapped_bytes() > MAPPED_BYTES:
        for array in arrays:
            owner: Any = array
            while isinstance(owner, np.ndarray):
                owner = owner.base
            if isinstance(owner, mmap.mmap):
                owner.madvise(mmap.MADV_DONTNEED)


def mapped_bytes() -> int:
    """Return how much of this process's resident memory is mapped files; 0 where unknown."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as handle:
            return int(handle.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


def _read_array_header(handle: BinaryIO, path: Path) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(handle)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = readers[version](handle)
    except _BAD_HEADER as error:
        raise CorruptError(
            f"{path}: is no .npy file or its header is broken; restore the file, or delete it "
            "and run the command that wrote it again",
            file=path,
        ) from error
    if dtype.hasobject:
        raise CorruptError(
            f"{path}: holds Python objects, which are never unpickled; expected numbers or text",
            file=path,
        )
    return shape, "F" if fortran else "C", dtype


def _check_length(path: Path, found: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    expected = prod(shape) * dtype.itemsize
    sound = len(shape) <= 32 and all(0 <= axis < 1 << 62 for axis in shape) and dtype.itemsize
    if not sound or found != expected:
        raise CorruptError(
            f"{path}: holds {found:,} bytes of rows, its header says {dtype} of shape {shape}, "
            f"{expected:,} bytes; restore the file, or delete it and run the command that wrote "
            "it again",
            file=path,
            found=found,
            expected=expected,
        )


# Hashes -----------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits; the file is read in pieces.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        _raise_unreadable(path, error)


def array_sha256(array: np.ndarray) -> str:
    """Return the sha256 of an array's dtype, shape and values, 64 hex digits.

    Equal arrays give equal hashes, however they lie in memory.

    Raises:
        UsageError: The array holds Python objects.
    """
    if array.dtype.hasobject:
        raise UsageError("array_sha256: the array holds Python objects, expected numbers or text")
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
