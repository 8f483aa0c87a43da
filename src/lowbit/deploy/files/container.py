"""The `.lowbit` file: named tensors and a header, in the safetensors format, sealed with a checksum.

The safetensors metadata has one entry, "lowbit": a JSON object with the keys `format` ("lowbit"), `version`, `library`
(of the writer), `sha256`, and the content that `artefact.py` gives it. The checksum is taken over the rest of that
object, with its keys sorted, and over name, dtype, shape and bytes of every tensor, in the order of the names. It tells
damage and edits by accident or by hand; it is no signature. Nothing in the file is code, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor

from lowbit._errors import ArtefactError

FORMAT = "lowbit"
VERSION = 1
_LENGTH = 8  # bytes in front of the safetensors header that hold its length
_LARGEST_HEADER = 100_000_000  # safetensors' own limit


def write(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    """Write a file atomically: a crash at any moment leaves the old file or the new one, never half.

    Args:
        path: where.
        content: what the header holds beside format, version and checksum; JSON values.
        tensors: by name, on any device.

    Returns: the size of the file in bytes.

    Raises: ArtefactError when a tensor has a dtype that the format does not know, or the disk refuses.
    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "version": VERSION, "library": library(), **content}
    header["sha256"] = _checksum(header, kept)
    try:
        data = safetensors.torch.save(kept, {FORMAT: _canonical(header)})
    except Exception as error:  # of half a dozen types
        raise ArtefactError(f"'{path}' cannot be written: {_first_line(error)}") from None
    part = path.with_name(f".{path.name}-{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise ArtefactError(f"'{path}' cannot be written: {error}; what was there before is untouched") from None
    return len(data)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, checked against its checksum; the tensors lie on the CPU.

    Raises: ArtefactError for a file that is missing, cut off, damaged, edited, of another format or version.
    """
    data = _bytes(path)
    head = _safetensors_header(path, data)
    header = _lowbit_header(path, head)
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # safetensors' own type, or whatever torch raises for a dtype it does not know
        _damaged(path, _first_line(error))
    claimed = header.pop("sha256", None)
    if claimed != _checksum(header, tensors):
        raise ArtefactError(
            f"'{path}' was changed after it was written, or is damaged: its content does not match its checksum; "
            "export the model again"
        )
    return header, tensors


def library() -> str:
    """The version of this lowbit."""
    try:
        return importlib.metadata.version("lowbit")
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return "of unknown version"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ArtefactError(f"there is no file '{path}'") from None
    except (OSError, MemoryError) as error:
        raise ArtefactError(f"'{path}' cannot be read: {_first_line(error)}") from None


def _safetensors_header(path: Path, data: bytes) -> dict[str, Any]:
    """The format's own header. Raises: ArtefactError that tells a file cut off from one of another kind."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > _LARGEST_HEADER or data[_LENGTH : _LENGTH + 1] != b"{":
        raise ArtefactError(f"'{path}' ({len(data)} bytes) is no .lowbit file: it is not in the safetensors format")
    if _LENGTH + length > len(data):
        _cut_off(path, _LENGTH + length, data)
    head = _json(path, data[_LENGTH : _LENGTH + length])
    last = max((_end(entry) for entry in head.values()), default=0)
    if _LENGTH + length + last > len(data):
        _cut_off(path, _LENGTH + length + last, data)
    return head


def _lowbit_header(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    metadata = head.get("__metadata__")
    text = metadata.get(FORMAT) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ArtefactError(
            f"'{path}' is a safetensors file, but not one that lowbit exported: it has no lowbit header"
        )
    if set(metadata or {}) != {FORMAT}:
        _damaged(path, "it has metadata that lowbit does not write")
    header = _json(path, text.encode("utf-8", "surrogatepass"))
    if header.get("format") != FORMAT:
        raise ArtefactError(f"'{path}' has the format {header.get('format')!r}: expected '{FORMAT}'")
    version = header.get("version")
    if type(version) is not int or version != VERSION:
        other = "a newer" if type(version) is int and version > VERSION else "another"
        raise ArtefactError(
            f"'{path}' has version {version!r} of the format, this lowbit ({library()}) reads version "
            f"{VERSION}: load it with {other} lowbit, or export the model again with this one"
        )
    return header


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"its header is not JSON ({_first_line(error)})")
    if not isinstance(found, dict):
        _damaged(path, "its header is not a JSON object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _end(entry: Any) -> int:
    """Where a tensor's bytes end, as far as its entry says so."""
    ends = entry.get("data_offsets") if isinstance(entry, dict) else None
    return ends[1] if isinstance(ends, list) and len(ends) == 2 and type(ends[1]) is int else 0


def _cut_off(path: Path, expected: int, data: bytes) -> NoReturn:
    raise ArtefactError(
        f"'{path}' is cut off: its header announces {expected} bytes, it has {len(data)}; copy or export it again"
    )


def _damaged(path: Path, reason: str) -> NoReturn:
    raise ArtefactError(f"'{path}' is damaged: {reason}; copy or export it again")


def _canonical(header: dict[str, Any]) -> str:
    return json.dumps(header, sort_keys=True, separators=(",", ":"))


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the header without its checksum and over all tensors."""
    found = hashlib.sha256(_canonical(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(_canonical({"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape)}).encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: on Linux it is the folder that records it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
