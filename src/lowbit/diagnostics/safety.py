"""The safety checker for estimators on activations: `lowbit check` and `lowbit.diagnostics.check`."""

from __future__ import annotations

import json
from pathlib import Path

from lowbit._errors import ConfigError
from lowbit._folders import new_folder
from lowbit.diagnostics.safety_plots import plot_safety
from lowbit.estimators import AbstractEstimator
from lowbit.quantizers import AbstractQuantizer
from lowbit.theory.safety import SafetyReport, check_safety


def check(
    estimator: str | AbstractEstimator,
    quantizer: str | AbstractQuantizer = "staircase",
    range: tuple[float, float] | None = None,
    seeds: int = 10,
    plot: Path | None = None,
) -> SafetyReport:
    """Is it safe to train activations with this estimator through this quantizer's staircase?

    Args:
        estimator: a spec such as `"relu"`, or an object.
        quantizer: a spec such as `"staircase(bits=4)"`, or an object.
        range: of the pre-activations (a, b), in step units; by default half the grid beyond each of its ends.
        seeds: runs for each angle of the one problem, and starts of the other.
        plot: a PNG file to draw the surrogate and the descents in; None draws nothing.

    Returns: `verdict` ("safe", "conditional" or "unsafe") and `reasons`; `render()` puts them in words, `to_dict()` in
    plain values. What is asked and how the verdict follows: see `lowbit.theory.safety.check_safety`.

    Raises:
        UnknownNameError, ConfigError: a name, range or number of seeds that does not fit, or a pair that is not
            defined.

    Example:
        >>> print(check("identity", "staircase(bits=4)").render())

    Source: [long2021coarse], [yin2019understanding]; the verdict is ours.
    """
    report = check_safety(estimator, quantizer, range, seeds)
    if plot is not None:
        plot_safety(plot, report)
    return report


def check_to_folder(
    estimator: str, quantizer: str, range: tuple[float, float] | None, seeds: int, out: Path | None
) -> tuple[SafetyReport, Path]:
    """`check`, with `check.png` and `check.json` in the folder `out` or in a new one under runs/.

    Raises: as `check`; ConfigError for a folder that is in use.
    """
    if out is not None and out.is_dir() and any(out.iterdir()):  # before minutes are spent
        raise ConfigError(f"folder '{out}' exists and is not empty; choose another --out")
    report = check_safety(estimator, quantizer, range, seeds)
    folder = new_folder(out, f"check-{estimator.partition('(')[0]}")
    plot_safety(folder / "check.png", report)
    (folder / "check.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return report, folder


def parse_range(text: str) -> tuple[float, float]:
    """`"a,b"` as two numbers. Raises: ConfigError for anything else."""
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise ConfigError(f"--range is {text!r}, expected two numbers a,b in step units, such as -4,12") from None
    return low, high
