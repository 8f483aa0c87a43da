"""A weight that is known by its codes alone: what a loaded layer has in the place of its weights' quantizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowbit._errors import ArtefactError
from lowbit.quantizers import AbstractQuantizer, Granularity, Grid

NO_TRAINING = (
    "this model was loaded from a .lowbit file, which holds the codes of its weights but not the latent weights that "
    "training moves: it can only evaluate; call model.eval(), and train the model that the file was saved from"
)


class FixedCodes(AbstractQuantizer):
    """A quantizer that has done its work: whatever tensor it is shown, it answers with the codes it holds.

    Forward: `codes(x) = codes`, `scale(x) = scale`, as the quantizer of the trained weight gave them; what the codes
    stand for follows from them by that quantizer's own formula. So everything that a low-bit layer evaluates comes out
    as it did in the trained model, bit for bit. Backward: none; in training mode it refuses to work.

    Args:
        origin: the quantizer that made the codes.
        codes: int16, the weight's shape.
        scale: as `origin.scale` gave it for the trained weight.

    Source: ours, not from a paper.
    """

    policies = ("fixed",)
    widths = tuple(range(1, 9))
    signed = True
    rounding = None  # whatever the origin's: nothing is rounded any more
    relative = False
    rectifies = False

    stored: Tensor
    unit_scale: Tensor

    def __init__(self, origin: AbstractQuantizer, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.origin = origin.eval().requires_grad_(False)
        self.register_buffer("stored", codes.to(torch.int16))
        self.register_buffer("unit_scale", scale)

    @classmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """None: it is no member of the family that one could ask for by name."""
        return []

    @property
    def grid(self) -> Grid:
        """The origin's."""
        return self.origin.grid

    @property
    def integer_grid(self) -> Grid:
        """The origin's."""
        return self.origin.integer_grid

    @property
    def granularity(self) -> Granularity:
        """The origin's."""
        return self.origin.granularity

    @property
    def static(self) -> bool:
        """True: nothing is computed from a tensor."""
        return True

    def train(self, mode: bool = True) -> FixedCodes:
        """Raises: ArtefactError for `mode=True`; the module refuses to work until `eval()` is called."""
        super().train(mode)
        if mode:
            raise ArtefactError(NO_TRAINING)
        return self

    def scale(self, x: Tensor) -> Tensor:
        """The scale that was stored."""
        return self.unit_scale

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """The codes, as a block view. Raises: ArtefactError in training mode."""
        if self.training:
            raise ArtefactError(NO_TRAINING)
        return self.granularity.blocks(self.stored).to(x.dtype)

    def discretize(self, z: Tensor) -> Tensor:
        """z, which is the codes already."""
        return z.clone()  # other staircases give a new tensor too, and callers may write to it

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """As the origin does."""
        return self.origin.dequantize(codes, scale)

    def integers(self, codes: Tensor) -> Tensor:
        """As the origin does."""
        return self.origin.integers(codes)

    def unit(self, scale: Tensor) -> Tensor:
        """As the origin does."""
        return self.origin.unit(scale)


def refuse_training(model: nn.Module) -> None:
    """Make a model with fixed codes refuse every call in training mode, before any of its modules runs.

    `train()` has raised by then, but whoever caught that has a model half in training mode, whose normalisation layers
    would change their statistics before the first fixed weight is reached.
    """
    fixed = any(isinstance(module, FixedCodes) for module in model.modules())
    if fixed and _refuse not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_refuse)


def _refuse(module: nn.Module, args: tuple[Any, ...]) -> None:
    if module.training:
        raise ArtefactError(NO_TRAINING)
