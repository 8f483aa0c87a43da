"""The options of every command: one frozen dataclass each, whose docstrings are the help texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowbit.training.config import TrainConfig


@dataclass(frozen=True)
class TrainCommand:
    """Train a low-bit network; without options, LeNet-5 with 1-bit weights and 2-bit activations on digits."""

    train: TrainConfig
    """The run."""
    config: Path | None = None
    """YAML file with any of the options below, dashes as underscores; a flag given here wins over the file."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class EvalCommand:
    """Test accuracy of a finished run."""

    run: Path
    """Run folder."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint: that of the best epoch or of the last one."""
    data_path: Path | None = None
    """Where the data is now, if it has moved since the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class SummaryCommand:
    """Bits, parameters, multiply-accumulates and bytes of every layer of a low-bit model."""

    model: str = TrainConfig.model
    """Model (see `lowbit list models`), or your own pkg.mod:fn."""
    data: str = TrainConfig.data
    """Data source, for the shape of its images and its number of classes."""
    data_path: Path | None = None
    """Folder or file with the data."""
    input: tuple[int, int, int] | None = None
    """Channels, height and width of an image, instead of taking them from the data."""
    classes: int = 10
    """Number of classes, with --input."""
    weights: int = TrainConfig.weights
    """Bits of the weights: 1 to 8, or 32 for float."""
    activations: int = TrainConfig.activations
    """Bits of the activations: 1 to 8, or 32 for float."""
    quantizer: str | None = None
    """Weight quantizer."""
    activation_quantizer: str | None = None
    """Activation quantizer."""
    keep_float: tuple[str, ...] = TrainConfig.keep_float
    """Layers left in float: first, last, or name patterns."""
    overrides: tuple[str, ...] = ()
    """Options of single layers: 'layer3.*(weights=2)' 'fc(float=True)'."""
    json: bool = False
    """Print one JSON object with the table as the last line of standard output."""


FAMILIES = {
    "estimators": "ESTIMATORS",
    "quantizers": "QUANTIZERS",
    "models": "MODELS",
    "data": "DATA",
    "methods": "METHODS",
}
"""The packages with something to choose from, and the name of each one's registry."""


@dataclass(frozen=True)
class ListCommand:
    """What there is to choose from, with a line about each."""

    family: Literal["all", "estimators", "quantizers", "models", "data", "methods"]
    """Which family; all of them when left out."""


@dataclass(frozen=True)
class PlotCommand:
    """Pictures of a run: its curves, and what was measured in its layers."""

    run: Path
    """Run folder."""
    out: Path | None = None
    """Folder for the pictures; None takes plots in the run folder."""
    json: bool = False
    """Print one JSON object with the files written as the last line of standard output."""


@dataclass(frozen=True)
class FlowCommand:
    """Perturb a flat metric at random, follow it along its Ricci flow, and fit how fast it becomes flat.

    The rate is compared with that of the linearised flow. Two pictures and the numbers are written to a folder.
    """

    dim: int = 2
    """Dimension of the torus: 2 or 3."""
    perturbation: float = 0.05
    """Size of the perturbation, as a share of the flat metric."""
    grid: int | None = None
    """Points along each axis; None takes 32 in two dimensions, 16 in three."""
    time: float | None = None
    """Flow time at which to end; None takes 6 divided by the linearised rate."""
    seed: int = 0
    """Seed of the perturbation."""
    equation: Literal["deturck", "ricci"] = "deturck"
    """The flow: deturck, where the metric's deviation decays, or ricci, where only its curvature does."""
    period: float = 2 * math.pi
    """Length of each side of the torus."""
    out: Path | None = None
    """Folder to write to; None makes a new one under runs/."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class CoarseCommand:
    """Train a two-linear-layer network with a quantized ReLU by coarse gradient descent, on classes in subspaces.

    For each seed: iterations until the loss is exactly zero, the norm of the coarse gradient, and its cosine with the
    gradient of the population loss.
    """

    estimator: str = "relu"
    """Estimator in the place of the staircase's derivative (see `lowbit list estimators`)."""
    bits: int = 4
    """Bits of the activations."""
    theta: float = 60.0
    """Angle between the subspaces of consecutive classes in degrees, above 0, up to 90."""
    seeds: int = 5
    """Number of runs, with the seeds 0, 1, 2 and so on."""
    classes: int = 2
    """Number of classes."""
    dims: int = 2
    """Dimension of each class's subspace."""
    units: int = 24
    """Hidden units, shared equally by the classes."""
    eta: float = 1.0
    """Step size."""
    iterations: int = 10_000
    """The most steps of a run, which ends at zero loss."""
    batch: int = 32
    """Fresh points of each class in each step."""
    radius: tuple[float, float] = (2.0, 4.0)
    """The least and the largest norm of a point."""
    quantizer: str = "staircase"
    """Quantizer whose staircase is the activation function, its steps of width 1."""
    plot: bool = False
    """Also run all the estimators of the papers at all angles, and write three pictures and the numbers to a folder."""
    out: Path | None = None
    """Folder for --plot; None makes a new one under runs/."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class CheckCommand:
    """Is an estimator safe for activations that pass through a quantizer's staircase?

    Looks whether it is in the class for which descent provably converges, lets descent with it run on the two problems
    of the theory, and whether its gradient vanishes at a known minimum. The verdict is safe, conditional or unsafe.
    """

    estimator: str
    """Estimator (see `lowbit list estimators`), options in brackets: 'ewgs(delta=0.5)'."""
    quantizer: str = "staircase"
    """Quantizer of the activations, with its bits: 'staircase(bits=4)'."""
    range: str | None = None
    """Range of the pre-activations in steps of the staircase: a,b; None takes half the grid beyond each of its ends."""
    seeds: int = 10
    """Runs on each problem."""
    plot: bool = True
    """Write a picture and the numbers to a folder."""
    out: Path | None = None
    """Folder for them; None makes a new one under runs/."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class FeaturesCommand:
    """Whether a run's last hidden layer puts each class near a low-dimensional subspace, as the theory assumes.

    Singular values and effective dimensions of the features of the training images, class by class, and the principal
    angles between the classes' subspaces; beside them the same of the images themselves.
    """

    run: Path
    """Run folder."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint: that of the best epoch or of the last one."""
    data_path: Path | None = None
    """Where the data is now, if it has moved since the run."""
    images: int = 10_000
    """The most training images to look at, without augmentation."""
    dimension: int | None = None
    """Dimension of every subspace in the angles; None takes what holds 90 % of the class's energy."""
    out: Path | None = None
    """Folder for the picture and the numbers; None takes features in the run folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class RepelCommand:
    """Start descent where a run ended, with another estimator of the activations, and watch the training loss.

    The run's own estimator goes along as the control, over the same batches: where its loss stays and another's rises,
    the other's coarse gradient drives the weights away from the minimum.
    """

    run: Path
    """Run folder; its activations must be low-bit."""
    estimators: tuple[str, ...] = ("identity",)
    """Estimators of the activations to compare with the run's own (see `lowbit list estimators`)."""
    steps: int = 200
    """Steps of descent."""
    lr: float = 0.05
    """Learning rate, kept constant."""
    momentum: float = 0.9
    """Momentum of the descent."""
    batch_size: int = 128
    """Images per step."""
    images: int = 1000
    """The most training images over which the loss is looked at."""
    checkpoint: Literal["best", "last"] = "last"
    """Which checkpoint to start from: that of the best epoch or of the last one."""
    data_path: Path | None = None
    """Where the data is now, if it has moved since the run."""
    seed: int = 0
    """Seed of the order of the images and of those that are looked at."""
    out: Path | None = None
    """Folder for the picture and the numbers; None takes repulsion in the run folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""
