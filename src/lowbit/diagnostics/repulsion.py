"""The experiment behind `lowbit repel`: is descent with another estimator driven away from the minimum that was found?

[yin2019understanding], Section 4, does it with the identity, from the minimum that a quantized ReLU's own estimator
reached: the training loss rises.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.estimators import ESTIMATORS, AbstractEstimator, build_estimator, check_pair
from lowbit.layers import FakeQuantize, QuantReLU, frozen_statistics, quant_layers

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Batch: TypeAlias = tuple[Tensor, Tensor]

LOOKS = 20
"""How often the loss is looked at, at equal distances, besides the start, when `every` is not given."""


@dataclass(frozen=True)
class Descent:
    """How to walk: plain stochastic gradient descent at a constant rate, without weight decay."""

    steps: int = 200
    """Steps to take."""
    lr: float = 0.05
    """Learning rate. It decides what is seen: from LeNet-5 with 2-bit activations on MNIST (clipped, 5 epochs, one
    seed) the identity left at 0.05, where the control stayed about twice above its start; at 0.01 neither did in 500
    steps, and at 0.2 both did."""
    momentum: float = 0.9
    """Momentum, without Nesterov's look ahead."""
    every: int | None = None
    """Steps between two looks at the loss; None looks 20 times."""
    seed: int = 0
    """Seed of what layers draw in training (dropout): at each step the same numbers for every estimator."""

    def __post_init__(self) -> None:
        for name in ("steps", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected a whole number from 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr is {self.lr}, expected a number above 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}, expected a number from 0 to below 1")

    @property
    def looks(self) -> list[int]:
        """The steps after which the loss is looked at, 0 and the last one among them."""
        every = self.every or math.ceil(self.steps / LOOKS)
        return [*range(0, self.steps, every), self.steps]


@dataclass(frozen=True)
class Walk:
    """What became of the loss with one estimator."""

    estimator: str
    """Its name."""
    own: bool
    """Whether it is the model's own: the control."""
    steps: list[int]
    """Where the loss was looked at; ends early where the walk diverged."""
    losses: list[float]
    """Mean loss over the evaluation images at each of `steps`, in evaluation mode: batch normalisation uses its running
    statistics, which follow the weights as in any training."""
    batch_losses: list[float]
    """Mean loss of the training batches since the look before, for each of `steps` but the first, in training mode:
    batch normalisation uses the statistics of each batch. It is the loss that descent sees."""
    initial: float
    """`losses` at the start, the same for every estimator."""
    final: float
    """`losses` at the end."""
    highest: float
    """The largest of `losses`."""
    settled: float | None
    """Mean of `batch_losses` in the second half of the walk: where the noise of single batches has averaged out; None
    where the walk did not get that far."""
    ratio: float | None
    """final / initial; None where the loss is exactly 0 at the start."""
    gradient_norm: float
    """‖∇̃L‖ at the start, over all parameters, L the loss of the evaluation images in training mode."""
    cosine: float | None
    """Of the angle between that coarse gradient and the control's; None where one of them is 0."""
    diverged: int | None
    """The look at which the loss was infinite or NaN, where it was."""


@dataclass(frozen=True)
class RepulsionReport:
    """What `lowbit repel` answers."""

    lr: float
    momentum: float
    steps: int
    batch_size: int
    """Images of the first step."""
    images: int
    """Images over which `losses` are means."""
    places: list[str]
    """The modules whose activation estimator was exchanged."""
    walks: list[Walk]
    """One for each estimator; the model's own, the control, comes first."""

    def render(self) -> str:
        """The report as a table for people."""
        head = (
            f"{self.steps} steps of {self.batch_size} images, rate {self.lr:g}, momentum {self.momentum:g}; loss of "
            f"{self.images:,} training images in evaluation mode (running statistics)\n"
            "settled: mean loss of the training batches in the second half, in training mode (their own statistics)\n"
            "gradient, cosine: norm of the coarse gradient at the start, and how it lies to that of the own estimator\n"
        )
        wide = max(20, *(len(_title(walk)) for walk in self.walks))
        names = ("start", "end", "highest", "end/start", "settled", "gradient", "cosine")
        rows = [f"{'estimator':<{wide}} " + " ".join(f"{name:>9}" for name in names)]
        for walk in self.walks:
            ratio = "-" if walk.ratio is None else f"{walk.ratio:.3g}"
            settled = "-" if walk.settled is None else f"{walk.settled:.3g}"
            note = "" if walk.diverged is None else f"   diverged at step {walk.diverged}"
            cosine = "-" if walk.cosine is None else f"{walk.cosine:.3f}"
            rows.append(
                f"{_title(walk):<{wide}} {walk.initial:>9.3g} {walk.final:>9.3g} {walk.highest:>9.3g} {ratio:>9} "
                f"{settled:>9} {walk.gradient_norm:>9.3g} {cosine:>9}{note}"
            )
        return head + "\n".join(rows)


def _title(walk: Walk) -> str:
    return f"{walk.estimator} (own)" if walk.own else walk.estimator


def repulsion(
    model: nn.Module,
    batches: Iterable[Batch],
    evaluation: Sequence[Batch],
    loss_fn: Loss,
    estimators: Sequence[str | AbstractEstimator] = ("identity",),
    descent: Descent | None = None,
    progress: float = 1.0,
) -> RepulsionReport:
    """Start coarse gradient descent at the model's weights, once with each estimator, and watch the training loss.

    At step t every copy of the model moves by `v ← μ v + ∇̃L_t(w)`, `w ← w − η v`, where L_t is the loss of the same
    batch for all copies, and `∇̃` its coarse gradient with the estimator of that copy behind every quantized activation;
    the weights' estimators stay what they are. The first copy keeps the model's own: where its loss stays while another
    copy's rises, that estimator's coarse gradient drives the weights away.

    The loss must not be exactly 0: in the two-linear-layer network of [long2021coarse] the hinge loss is 0 at the
    minimum, and with it the coarse gradient of *every* estimator, so that nothing moves. With the cross-entropy there
    is always something left.

    Args:
        model: converted, trained, neither compiled nor wrapped; itself, its gradients and torch's random numbers stay
            as they are.
        batches: at least `descent.steps` of inputs and labels, gone through once.
        evaluation: batches over which the loss is looked at.
        loss_fn: `loss_fn(outputs, labels)`, a mean over the batch.
        estimators: to compare with the model's own, which is left out where it is among them.
        descent: how to walk.
        progress: to which an annealed estimator is set, 0 to 1.

    Raises: ConfigError when the model has no low-bit activations, an estimator is not defined for them, or the batches
        run out; UnknownNameError.

    Source: [yin2019understanding], Sec. 4; the control and the two ways to look at the loss are ours.
    """
    descent = descent or Descent()
    if not evaluation:
        raise ConfigError("repulsion needs at least one evaluation batch to look at the loss")
    walkers = _walkers(model, estimators, descent, progress)
    done = size = 0
    with torch.random.fork_rng(devices=_devices(model)), torch.enable_grad():
        _start(walkers, evaluation, loss_fn, descent.seed)
        for step, batch in zip(range(1, descent.steps + 1), batches, strict=False):
            done, size = step, size or len(batch[1])
            for walker in walkers:
                torch.manual_seed(descent.seed + step)
                walker.step(step, batch, loss_fn)
                if step in descent.looks:
                    walker.look(step, evaluation, loss_fn)
    if done < descent.steps:
        raise ConfigError(f"there were {done} batches for {descent.steps} steps; give as many as there are steps")
    images = sum(len(labels) for _, labels in evaluation)
    places = list(_activation_quantizers(model))
    return RepulsionReport(
        descent.lr, descent.momentum, descent.steps, size, images, places, [w.walk() for w in walkers]
    )


def _walkers(
    model: nn.Module, estimators: Sequence[str | AbstractEstimator], descent: Descent, progress: float
) -> list[_Walker]:
    """A copy of the model with its own estimators, and one for each other one."""
    places = _activation_quantizers(model)
    if not places:
        raise ConfigError(
            "the model has no low-bit activations, and so no activation estimator to exchange; take one that was "
            "trained with --activations 1 to 8"
        )
    own = " and ".join(dict.fromkeys(_name(place.rule) for place in places.values()))
    walkers = [_Walker(own, copy.deepcopy(model), descent, progress, own=True)]
    for rule, name in {build_estimator(e): e if isinstance(e, str) else _name(e) for e in estimators}.items():
        if any(place.rule != rule for place in places.values()):
            walkers.append(_Walker(name, with_activation_estimator(model, rule), descent, progress))
    return walkers


def _start(walkers: Sequence[_Walker], evaluation: Sequence[Batch], loss_fn: Loss, seed: int) -> None:
    """Look at the loss and the coarse gradients before the first step."""
    control = None
    for walker in walkers:
        torch.manual_seed(seed)
        control = walker.start(evaluation, loss_fn, control)
        walker.look(0, evaluation, loss_fn)
    if walkers[0].diverged is not None:
        raise ConfigError("the loss is not finite before the first step; take a model that works")


def with_activation_estimator(model: nn.Module, estimator: str | AbstractEstimator) -> nn.Module:
    """A copy of a model with another estimator behind every quantized activation, whatever was there.

    Raises: ConfigError when the estimator is not defined for one of the quantizers, UnknownNameError.
    """
    rule = build_estimator(estimator)
    model = copy.deepcopy(model)
    places = _activation_quantizers(model)
    for name, old in places.items():
        check_pair(rule, old.quantizer, "activations")
        new = FakeQuantize(old.quantizer, rule, old.name).train(old.training)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def _activation_quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """The quantizers of activations by name: in the place of ReLUs, and at the inputs of low-bit layers."""
    low_bit = [name for name, _ in quant_layers(model)]
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, QuantReLU) or name in low_bit]
    found = {f"{name}.input_quantizer".lstrip("."): layer.input_quantizer for name, layer in layers}
    return {name: module for name, module in found.items() if isinstance(module, FakeQuantize)}


def _name(estimator: AbstractEstimator) -> str:
    return ESTIMATORS.name_of(type(estimator), default=type(estimator).__name__)


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})


@dataclass(eq=False)
class _Walker:
    """One copy of the model on its way."""

    name: str
    model: nn.Module
    descent: Descent
    progress: float
    own: bool = False
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)
    since: list[Tensor] = field(default_factory=list)
    diverged: int | None = None
    gradient_norm: float = 0.0
    cosine: float | None = None

    def __post_init__(self) -> None:
        for place in _activation_quantizers(self.model).values():
            place.set_progress(self.progress)
        moving = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(moving, lr=self.descent.lr, momentum=self.descent.momentum)

    def start(self, evaluation: Sequence[Batch], loss_fn: Loss, control: Tensor | None) -> Tensor:
        """Measure the coarse gradient against the control's; returns the control's."""
        moving = [p for p in self.model.parameters() if p.requires_grad]
        images = sum(len(labels) for _, labels in evaluation)
        total: list[Tensor] = [torch.zeros_like(p) for p in moving]
        self.model.train()
        with frozen_statistics(self.model):
            for inputs, labels in evaluation:
                loss = loss_fn(self.model(inputs), labels) * (len(labels) / images)
                found = torch.autograd.grad(loss, moving, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        slope = torch.cat([t.double().flatten() for t in total])
        control = slope if control is None else control
        self.gradient_norm = float(slope.norm())
        size = self.gradient_norm * float(control.norm())
        self.cosine = float(slope @ control) / size if size else None
        return control

    def step(self, step: int, batch: Batch, loss_fn: Loss) -> None:
        if self.diverged is not None:
            return
        inputs, labels = batch
        self.model.train()
        self.optimizer.zero_grad()
        loss = loss_fn(self.model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.since.append(loss.detach())

    def look(self, step: int, evaluation: Sequence[Batch], loss_fn: Loss) -> None:
        if self.diverged is not None:
            return
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, labels in evaluation:
                total += float(loss_fn(self.model(inputs), labels)) * len(labels)
                count += len(labels)
        batches = float(torch.stack(self.since).mean()) if self.since else 0.0
        if not (math.isfinite(total) and math.isfinite(batches)):
            self.diverged = step
            return
        self.steps.append(step)
        self.losses.append(total / count)
        self.batch_losses += [batches] if self.since else []
        self.since.clear()

    def walk(self) -> Walk:
        initial, final = self.losses[0], self.losses[-1]
        pairs = zip(self.steps[1:], self.batch_losses, strict=True)
        late = [loss for step, loss in pairs if step > self.descent.steps / 2]
        return Walk(
            estimator=self.name,
            own=self.own,
            steps=self.steps,
            losses=self.losses,
            batch_losses=self.batch_losses,
            initial=initial,
            final=final,
            highest=max(self.losses),
            settled=sum(late) / len(late) if late else None,
            ratio=final / initial if initial else None,
            gradient_norm=self.gradient_norm,
            cosine=self.cosine,
            diverged=self.diverged,
        )
