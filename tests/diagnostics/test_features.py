from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit import ConfigError, DataError
from lowbit.diagnostics.features import FeatureReport, class_subspaces, collect_features
from lowbit.diagnostics.features_plots import plot_features


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _planes(degrees: float, noise: float = 0.0, images: int = 400) -> tuple[Tensor, Tensor]:
    """Two planes of R⁶ that meet at 90° and at `degrees`, turned at random, with points of norm about 1 in each."""
    angle = math.radians(degrees)
    e = torch.eye(6, dtype=torch.float64)
    bases = [torch.stack([e[0], e[1]]), torch.stack([e[2], math.cos(angle) * e[1] + math.sin(angle) * e[3]])]
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=_generator(1)))
    points = [torch.randn(images, 2, dtype=torch.float64, generator=_generator(2 + i)) @ b for i, b in enumerate(bases)]
    features = torch.cat(points) @ turn
    features += noise * torch.randn(features.shape, dtype=torch.float64, generator=_generator(9))
    return features, torch.arange(2).repeat_interleave(images)


def _dimensions(report: FeatureReport) -> list[tuple[int, int]]:
    return [(subspace.dimension_90, subspace.dimension_95) for subspace in report.classes]


@pytest.mark.parametrize("degrees", [90.0, 60.0, 15.0, 1.0])
def test_planes_and_the_angle_between_them_are_found_exactly(degrees: float) -> None:
    report = class_subspaces(*_planes(degrees), classes=["first", "second"], layer="fc")
    assert _dimensions(report) == [(2, 2), (2, 2)]
    assert report.dimensions == [2, 2]
    assert report.smallest_angle[0][1] == pytest.approx(degrees, abs=1e-5)
    assert report.mean_angle[0][1] == pytest.approx((90 + degrees) / 2, abs=1e-5)
    assert report.mean_angle == [list(column) for column in zip(*report.mean_angle, strict=True)]
    assert [report.smallest_angle[i][i] for i in range(2)] == [0, 0]
    assert [subspace.images for subspace in report.classes] == [400, 400]
    assert (report.width, report.images, report.together_90) == (6, 800, 4 if degrees > 15 else 3)


def test_noise_blurs_them_a_little() -> None:
    report = class_subspaces(*_planes(40.0, noise=0.02))
    assert _dimensions(report) == [(2, 2), (2, 2)]
    assert report.smallest_angle[0][1] == pytest.approx(40, abs=1)
    assert report.smallest_angle[0][1] != pytest.approx(40, abs=1e-4)
    assert len(report.classes[0].singular_values) == 6
    assert report.classes[0].singular_values[2:] == pytest.approx([0.02] * 4, rel=0.15)
    drowned = class_subspaces(*_planes(40.0, noise=3.0))
    assert _dimensions(drowned) == [(6, 6), (6, 6)]


def test_singular_values_are_root_mean_squares_and_decide_the_dimension() -> None:
    """Along axis k, X has the entries ±a_k only, so that σ_k = a_k whatever the number of images."""
    sizes = torch.tensor([6.0, 3.0, 2.0, 1.0])  # energies 36, 9, 4, 1: shares 0.72, 0.90, 0.98, 1
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    for copies in (1, 5):
        rows = (signs * sizes).repeat(copies, 1)
        report = class_subspaces(rows, torch.zeros(4 * copies, dtype=torch.int64))
        assert report.classes[0].singular_values == pytest.approx([6, 3, 2, 1])
        assert _dimensions(report) == [(2, 3)]  # exactly 90 % with two
        assert (report.together_90, report.together_95) == (2, 3)
    shifted = class_subspaces(rows + 10, torch.zeros(len(rows), dtype=torch.int64))  # not centred: a mean counts
    assert _dimensions(shifted) == [(1, 1)]


def test_a_dimension_of_ones_own_and_subspaces_of_different_dimensions() -> None:
    features = torch.zeros(30, 4)
    features[:10, 0] = 1  # a line
    features[10:20, :2] = torch.eye(2).repeat(5, 1)  # a plane that holds it
    features[20:, 2] = 2  # a line at right angles to both
    labels = torch.arange(3).repeat_interleave(10)
    report = class_subspaces(features, labels)
    assert report.dimensions == [1, 2, 1]
    expected = [[0.0, 0.0, 90.0], [0.0, 0.0, 90.0], [90.0, 90.0, 0.0]]
    for table in (report.smallest_angle, report.mean_angle):
        assert torch.tensor(table) == pytest.approx(torch.tensor(expected), abs=1e-5)
    assert class_subspaces(features, labels, dimension=1).dimensions == [1, 1, 1]
    with pytest.raises(ConfigError, match="dimension is 2, but the features of class '0' span 1 only"):
        class_subspaces(features, labels, dimension=2)


def test_what_cannot_be_measured_is_refused_in_words() -> None:
    features, labels = _planes(60.0)
    with pytest.raises(ConfigError, match=r"dimension is 7, expected a whole number from 1 to 6"):
        class_subspaces(features, labels, dimension=7)
    with pytest.raises(ConfigError, match=r"labels go from 0 to 1, but there are 1 classes"):
        class_subspaces(features, labels, classes=["one"])
    with pytest.raises(DataError, match="class 'third' has none of the images"):
        class_subspaces(features, labels, classes=["one", "two", "third"])
    with pytest.raises(DataError, match="features of class '1' are all 0"):
        class_subspaces(features * (labels == 0)[:, None], labels)
    with pytest.raises(DataError, match="not all finite"):
        class_subspaces(features.clone().index_fill_(0, torch.tensor([3]), math.inf), labels)
    for bad in ((features[0], labels), (features, labels[:5]), (features[:0], labels[:0])):
        with pytest.raises(ConfigError, match=r"expected \[N, d\] and \[N\]"):
            class_subspaces(*bad)


def _batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 1, 6, 6, generator=_generator(i)), torch.arange(4) % 2) for i in range(count)]


def test_features_are_what_the_last_layer_gets_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2)).train()
    body[3].eval()  # modes of single modules are put back too
    batches = _batches()
    features, labels, name = collect_features(model, batches)
    assert name == "3"
    assert [module.training for module in (model, body, body[1], body[3])] == [True, True, True, False]
    assert float(body[1].running_mean.abs().max()) == 0  # type: ignore[union-attr, operator]
    model.eval()
    expected = torch.cat([model[2](model[1](body(images))) for images, _ in batches])
    assert torch.equal(features, expected)
    assert features.requires_grad is False
    assert torch.equal(labels, torch.cat([classes for _, classes in batches]))
    assert not any(module._forward_pre_hooks for module in model.modules())


class _Reversed(nn.Module):
    """The classifier is registered first and called last; a shared layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(2, 2, 3)
        self.stem = nn.Conv2d(1, 2, 1)
        self.inner = nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.classifier(self.inner(self.inner(self.stem(images))))
        return result.mean((2, 3))


def test_the_last_layer_is_the_one_called_last_low_bit_or_not() -> None:
    torch.manual_seed(0)
    model = _Reversed()
    features, _, name = collect_features(model, _batches(1))
    assert (name, features.shape) == ("classifier", (4, 2 * 6 * 6))
    layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))
    low_bit = lowbit.convert(layers, weights=1, activations=2, keep_float=("first",))
    features, _, name = collect_features(low_bit, _batches(1))
    assert name == "3"
    assert torch.equal(features, layers[:3](_batches(1)[0][0]))  # before the layer quantizes them
    alone, _, name = collect_features(nn.Linear(6, 2), [(torch.ones(3, 6), torch.zeros(3, dtype=torch.int64))])
    assert (name, alone.tolist()) == ("the model", [[1.0] * 6] * 3)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (lambda: nn.Flatten(), ConfigError, "calls no nn.Linear or convolution"),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(144, 2)), ConfigError, r"shape \(144,\) for 4 images"),
        (lambda: nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 2)), None, ""),
        (lambda: nn.Sequential(nn.Flatten(0, 2), nn.Linear(6, 2)), ConfigError, r"shape \(24, 6\) for 4 images"),
    ],
)
def test_a_model_that_cannot_be_looked_into(
    model: Callable[[], nn.Module], error: type[Exception] | None, says: str
) -> None:
    built = model()
    if error is None:
        assert collect_features(built, _batches(1))[0].shape == (4, 36)
        return
    with pytest.raises(error, match=says):
        collect_features(built, _batches(1))
    assert not any(module._forward_pre_hooks for module in built.modules())
    with pytest.raises(DataError, match="no images"):
        collect_features(built, [])


def test_the_report_is_json_and_reads_well() -> None:
    report = class_subspaces(*_planes(60.0), classes=["cat", "dog"], layer="classifier")
    again = json.loads(json.dumps(asdict(report), allow_nan=False))
    assert again["smallest_angle"] == report.smallest_angle
    assert again["classes"][1]["name"] == "dog"
    text = report.render()
    assert "the input of 'classifier', 6 numbers, over 800 images" in text
    (row,) = (line for line in text.splitlines() if line.startswith("cat"))
    assert row.split() == ["cat", "400", "2", "2", "2", "60.0°", "(dog)", "75.0°", "(dog)"]
    assert report.summary() == "2 dimensions hold 90 %, 2 hold 95 %, nearest class at 60° (mean angle: 75°)"
    alone = class_subspaces(torch.eye(3), torch.zeros(3, dtype=torch.int64))
    assert alone.render().splitlines()[4].split() == ["0", "3", "3", "3", "3", "-", "-"]
    assert alone.summary() == "3 dimensions hold 90 %, 3 hold 95 %"


@pytest.mark.parametrize("classes", [2, 14])
def test_the_picture(tmp_path: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    features = torch.randn(40 * classes, 8, generator=_generator()).abs()
    report = class_subspaces(features, torch.arange(classes).repeat(40))
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    plot_features(tmp_path / "f.png", report, report if classes == 2 else None, "run")
    (figure,) = drawn
    values, smallest, _ = figure.axes[:3]
    curve = next(line for line in values.get_lines() if line.get_label() == "0 " + str(_dimensions(report)[0]))
    sigma = torch.tensor(report.classes[0].singular_values)
    assert curve.get_ydata() == pytest.approx((sigma / sigma.norm()).numpy())
    numbers = [text.get_text() for text in smallest.texts]
    assert numbers == ([f"{report.smallest_angle[0][1]:.0f}"] * 2 if classes == 2 else [])
    grey = [line for line in values.get_lines() if line.get_color() == "0.75"]
    assert len(grey) == (2 if classes == 2 else 0)
