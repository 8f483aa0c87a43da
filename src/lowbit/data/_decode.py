"""Compressed images (JPEG, PNG, ...) into one uint8 tensor."""

from __future__ import annotations

import io
import itertools
import mmap
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lowbit._errors import ConfigError, DataError
from lowbit.data import _cache

Encoded = bytes | Path

_MANY = 2000  # from here on, worker processes and the cache are worth their overhead
_MODES = {1: "L", 3: "RGB"}
_WIDE = ("I", "I;16", "I;16B", "I;16L", "F")  # more than 8 bits a channel: converting would clip to white


def decode_images(
    encoded: Sequence[Encoded], where: str, *, channels: int = 3, size: tuple[int, int] | None = None
) -> Tensor:
    """Decode images into uint8 [N, channels, H, W].

    Large sets are decoded by one process per core (on Linux), and kept in the cache (see `_cache`).

    Args:
        encoded: the content of each image file, or its path.
        where: the file or split they come from, for messages.
        channels: 3 for RGB, 1 for grey; images of the other kind are converted.
        size: (height, width) to scale and centre-crop to; None where all images have one size already.

    Raises: DataError when an image is damaged, has more than 8 bits per channel, or differs in size from the first;
    ConfigError for another number of channels.
    """
    if channels not in _MODES:
        raise ConfigError(f"channels is {channels!r}; expected 3 (colour) or 1 (grey)")
    if not encoded:
        raise DataError(f"{where} holds no images; expected at least one")
    name = _cache.key(encoded, channels, size) if len(encoded) >= _MANY else None
    kept = _cache.load(name) if name else None
    if kept is not None and kept.ndim == 4 and kept.shape[:2] == (len(encoded), channels):
        return torch.from_numpy(kept)
    height, width = size or _read(encoded, 0, where, channels, None).shape[:2]
    shape = (len(encoded), height, width, channels)
    if len(encoded) >= _MANY and _workers() > 1:
        out = _decode_in_processes(encoded, where, shape, size)
    else:
        out = np.empty(shape, np.uint8)
        _decode_range(encoded, range(len(encoded)), where, out, size)
    images = np.ascontiguousarray(out.transpose(0, 3, 1, 2))
    if name:
        _cache.save(name, images)
    return torch.from_numpy(images)


def _decode_range(
    encoded: Sequence[Encoded], part: range, where: str, out: npt.NDArray[np.uint8], size: tuple[int, int] | None
) -> None:
    for index in part:
        image = _read(encoded, index, where, out.shape[3], size)
        if image.shape != out.shape[1:]:
            raise DataError(
                f"{_label(encoded, index, where)} is {image.shape[0]} x {image.shape[1]} pixels and the first is "
                f"{out.shape[1]} x {out.shape[2]} (height x width); give an image_size to bring all to one size, or "
                "use images of one size"
            )
        out[index] = image


def _label(encoded: Sequence[Encoded], index: int, where: str) -> str:
    item = encoded[index]
    return f"image '{item}'" if isinstance(item, Path) else f"image {index} of {where}"


def _read(
    encoded: Sequence[Encoded], index: int, where: str, channels: int, size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    item = encoded[index]
    # Naming the format spares Pillow from trying all it knows on every image, a third of the time for small ones.
    formats = ("JPEG",) if isinstance(item, bytes) and item.startswith(b"\xff\xd8\xff") else None
    try:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item, formats=formats) as image:
            if image.mode in _WIDE:
                raise DataError(
                    f"{_label(encoded, index, where)} has more than 8 bits per channel (mode {image.mode}); "
                    "convert it to 8 bits first"
                )
            plain = _fit(_as_mode(image, _MODES[channels]), size)
            pixels = np.frombuffer(plain.tobytes(), np.uint8)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged content
        reason = str(error).partition(" <_io")[0]
        raise DataError(
            f"{_label(encoded, index, where)} cannot be decoded ({type(error).__name__}: {reason}); it is "
            "damaged or not an image: get it again, or remove it"
        ) from error
    return pixels.reshape(plain.height, plain.width, channels)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Scale so that the image covers `size` = (height, width), and keep the centre; bilinear with antialiasing."""
    if size is None or (image.height, image.width) == size:
        return image
    height, width = size
    ratio = min(image.height / height, image.width / width)
    box_height, box_width = height * ratio, width * ratio
    top, left = (image.height - box_height) / 2, (image.width - box_width) / 2
    box = (left, top, min(left + box_width, image.width), min(top + box_height, image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _workers() -> int:
    # Pillow holds the interpreter's lock while it decodes, so threads gain nothing. Only forked processes share the
    # images without a copy, and only Linux forks safely; a daemon may have no children.
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


def _decode_in_processes(
    encoded: Sequence[Encoded], where: str, shape: tuple[int, ...], size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    shared = mmap.mmap(-1, int(np.prod(shape)))
    out = np.frombuffer(shared, np.uint8).reshape(shape)
    count = min(_workers(), 16)
    edges = [len(encoded) * k // count for k in range(count + 1)]
    parts = [range(a, b) for a, b in itertools.pairwise(edges)]

    def work(part: range, report: Connection) -> None:
        problem = ""
        try:
            _decode_range(encoded, part, where, out, size)
        except DataError as error:
            problem = str(error)
        report.send(problem)

    for problem in _fork_each(work, parts):
        if problem:
            raise DataError(problem)
    return out


def _fork_each(work: Callable[[range, Connection], None], parts: Sequence[range]) -> list[str]:
    """Run `work` on each part in a process of its own; what each reported, in order."""
    context = multiprocessing.get_context("fork")
    started = []
    for part in parts:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(part, sender))
        with warnings.catch_warnings():
            # From 3.12 on Python warns of forking with threads about; the children only use Pillow and NumPy.
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
            process.start()
        sender.close()
        started.append((process, receiver))
    problems = []
    for process, receiver in started:
        try:
            problems.append(str(receiver.recv()))
        except EOFError:
            problems.append("a process that decodes images died, perhaps for want of memory; free some and try again")
        process.join()
        receiver.close()
    return problems
