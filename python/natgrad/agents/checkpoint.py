"""Checkpoints: one uncompressed .npz with arrays and one JSON member; loading runs no code.

A file is written next to its destination, synchronised and then renamed, so that there is always
either the old checkpoint or the new one. Reading trusts nothing: names, types and shapes are
compared with what the reader expects before a byte of an array is read, then a checksum of
everything, metadata included, and finiteness.
"""

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from natgrad import _core

__all__ = ["CheckpointError", "Spec", "read_arrays", "read_metadata", "write"]

FORMAT_VERSION = 1
MAX_METADATA_BYTES = 64 * 2**20
METADATA = "metadata"

Spec = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]


class CheckpointError(ValueError):
    """A file that cannot be written, or that is no checkpoint fit for use."""


def write(
    path: str | os.PathLike[str], metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Writes a checkpoint, or leaves the file at `path` as it was.

    Args:
        path: destination; its folder must exist.
        metadata: JSON types only; "format_version", "natgrad_version" and "sha256" are added.
        arrays: of numbers; native byte order.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {
        **metadata,
        "format_version": FORMAT_VERSION,
        "natgrad_version": _core.__version__,
    }
    header["sha256"] = _digest(header, arrays)
    encoded = np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)
    temporary = None
    try:
        # Not mkstemp, whose files nobody else may read.
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, **{METADATA: encoded, **arrays})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot write checkpoint {str(path)!r}: {error.strerror or error}; "
            "what was there before is unchanged"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what a checkpoint says about itself; arrays are not touched.

    Raises:
        CheckpointError: no file, no checkpoint, a damaged one, or one of a later version.
    """
    with _opened(path) as archive:
        encoded = _member(archive, METADATA, np.dtype(np.uint8), None, MAX_METADATA_BYTES)
        metadata = json.loads(encoded.tobytes())
        version = metadata.get("format_version") if isinstance(metadata, dict) else None
        if type(version) is not int or version < 1:
            raise _Refusal("its metadata has no format_version")
        if version > FORMAT_VERSION:
            raise _Refusal(
                f"it has format version {version}, written by natgrad "
                f"{metadata.get('natgrad_version')}; this one reads up to {FORMAT_VERSION}"
            )
        return dict(metadata)


def read_arrays(
    path: str | os.PathLike[str], metadata: Mapping[str, Any], spec: Spec
) -> dict[str, NDArray[Any]]:
    """Reads exactly the arrays of `spec` and verifies them.

    Args:
        path: the checkpoint.
        metadata: from `read_metadata`.
        spec: type and shape of every array that must be there.

    Raises:
        CheckpointError: other names, types or shapes; damage; values that are not finite.
    """
    with _opened(path) as archive:
        members = set(archive.namelist())
        wanted = {f"{name}.npy" for name in (METADATA, *spec)}
        if members != wanted:
            raise _Refusal(
                f"it lacks {sorted(wanted - members)} and has {sorted(members - wanted)} besides"
            )
        arrays = {
            name: _member(archive, name, dtype, shape, None)
            for name, (dtype, shape) in spec.items()
        }
        if _digest(metadata, arrays) != metadata.get("sha256"):
            raise _Refusal("its content does not have the checksum that was stored with it")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise _Refusal(f"array {name!r} has values that are not finite")
        return arrays


class _Refusal(Exception):  # noqa: N818
    """Why a file is refused; `_opened` adds its name."""


class _opened:  # noqa: N801 (a context manager, used like a function)
    """A zip archive on a path; every way in which reading can fail becomes a CheckpointError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __enter__(self) -> zipfile.ZipFile:
        try:
            self._archive = zipfile.ZipFile(self._path)
        except Exception as error:  # so can finding the members
            raise self._error(error) from error
        return self._archive

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._archive.close()
        if isinstance(error, Exception):  # parsing a damaged header can fail in any way
            raise self._error(error) from error

    def _error(self, error: BaseException) -> CheckpointError:
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            reason = error.strerror
        elif isinstance(error, _Refusal):
            reason = str(error)
        else:
            reason = f"it is damaged or no checkpoint at all ({error})"
        return CheckpointError(
            f"cannot read checkpoint {str(self._path)!r}: {reason}; wanted a file written by "
            "natgrad (agent.save)"
        )


def _member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...] | None,
    limit: int | None,
) -> NDArray[Any]:
    """Reads one array whose header says what is expected; `shape` None means one-dimensional."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise _Refusal(f"it has no member {name!r}") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise _Refusal(f"member {name!r} is compressed")
    if limit is not None and info.file_size > limit:
        raise _Refusal(f"member {name!r} has {info.file_size} bytes, more than {limit}")
    with archive.open(info) as file:
        if npy.read_magic(file) != (1, 0):
            raise _Refusal(f"member {name!r} is no plain array")
        stated_shape, fortran, stated_dtype = npy.read_array_header_1_0(file)
        if shape is None:
            shape = stated_shape[:1]
        as_told = (stated_dtype, stated_shape) == (dtype, shape)
        if not as_told or (fortran and len(stated_shape) > 1):
            raise _Refusal(
                f"array {name!r} is {stated_dtype} {stated_shape}; wanted {dtype} {shape}"
            )
        size = dtype.itemsize * math.prod(shape)
        # The header is only a claim: the archive's directory bounds what may be allocated.
        if info.file_size - file.tell() != size:
            raise _Refusal(f"array {name!r} should have {size} bytes, but the file does not")
        return np.frombuffer(file.read(), dtype).reshape(shape).copy()


def _digest(metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    content = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
