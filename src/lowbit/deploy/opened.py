"""An exported file, ready to run without the run that it was made in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit._errors import ArtefactError, ConfigError
from lowbit.deploy.files.artefact import load
from lowbit.deploy.files.origin import Origin, require_origin
from lowbit.deploy.kernels.compiled import compile


@dataclass(frozen=True)
class Opened:
    """What runs a file.

    Args:
        path: the file.
        origin: where it comes from.
        runtime: what computes it, in words.
        run: from a batch of images to what the model returns.
        model: of a `.lowbit` file: the model layer by layer, in PyTorch.
    """

    path: Path
    origin: Origin
    runtime: str
    run: Callable[[Tensor], Tensor]
    model: nn.Module | None = None

    def require_same(self, images: Tensor) -> None:
        """See that the kernels compute what PyTorch computes. Raises: ArtefactError."""
        if self.model is None:
            return
        with torch.no_grad():
            if not torch.equal(self.run(images), self.model(images)):
                raise ArtefactError(
                    f"the compiled kernels do not compute what PyTorch computes from '{self.path}': this is a mistake "
                    "in lowbit, please report it"
                )


def rebuild(path: str | Path, model: str | None = None) -> nn.Module:
    """The model of a `.lowbit` file that `lowbit export` wrote, in evaluation mode, from the file alone.

    Args:
        path: the file.
        model: the architecture, where it is a function of the user's own; see `Origin.build`.

    Raises: ArtefactError, ConfigError, UnknownNameError.
    """
    path = Path(path)
    return load(require_origin(path).build(path, model), path)


def open_artefact(path: str | Path, threads: int, model: str | None = None) -> Opened:
    """Make a file ready to run: `.lowbit` on the kernels, `.onnx` in ONNX Runtime, `.qonnx` in qonnx.

    Args:
        path: a file that `lowbit export` wrote.
        threads: how many the runtime uses; qonnx uses one.
        model: the architecture, where it is a function of the user's own; see `Origin.build`.

    Raises: ArtefactError, ConfigError, UnknownNameError.
    """
    path = Path(path)
    origin = require_origin(path)
    if path.suffix == ".lowbit":
        loaded = rebuild(path, model)
        compiled = compile(loaded, threads)
        operations = compiled.describe(torch.zeros(1, origin.in_channels, *origin.image_size)).splitlines()
        runtime = "lowbit's kernels" if any(line.startswith("kernels: ") for line in operations) else "PyTorch"
        return Opened(path, origin, runtime, compiled, loaded)
    if path.suffix == ".onnx":
        return Opened(path, origin, "ONNX Runtime", _onnx(path, threads))
    return Opened(path, origin, "qonnx", _qonnx(path))


def _onnx(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    from lowbit.deploy.measure.peers import session

    try:
        opened = session(path, threads)
    except ImportError as error:
        raise ConfigError(
            f"'{path.name}' cannot be run here ({error}): install what runs ONNX with pip install 'lowbit[onnx]'"
        ) from None
    except Exception as error:  # of the runtime's own types
        text = str(error).strip().splitlines()[0]
        raise ArtefactError(f"'{path}' is damaged: ONNX Runtime refuses it ({text}); export it again") from None
    name = opened.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(opened.run(None, {name: images.numpy()})[0])

    return run


def _qonnx(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        from lowbit.deploy.onnx import runner
    except ImportError as error:
        raise ConfigError(
            f"'{path.name}' cannot be run here ({error}): install what runs it with pip install 'lowbit[onnx]'"
        ) from None

    def run(images: Tensor) -> Tensor:
        return runner.run(path, images)[1][0]

    return run
