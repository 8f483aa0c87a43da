"""`python -m benchmarks.identical` on a few small digits: it finds what is the same, and what is not."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
pytest.importorskip("torch.onnx.ops")

from benchmarks import identical
from benchmarks._identical_nets import SUBJECTS, held_out, trained

import lowbit
from lowbit.deploy.kernels.loader import instruction_sets

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="lowbit was installed without its kernels")
DIGITS = ["--sets", "digits", "--images", "60", "--steps", "30"]


def test_a_net_of_whole_numbers_and_one_with_float_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    words = ["identical", *DIGITS, "--settings", "W1A2,W1A32", "--save", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    identical.main()
    records = json.loads(file.read_text())["records"]
    assert [r["runtime"] for r in records] == [*identical.RUNTIMES] * 2
    assert all(r["passed"] and r["images"] == 60 and r["predictions_differing"] == 0 for r in records)
    whole, real = records[:3], records[3:]
    # 60 images: what conv1, conv2, fc1 and the classifier read
    codes = 60 * (8 * 8 + 8 * 4 * 4 + 16 * 2 * 2 + 32)
    assert all((r["layers"], r["codes"], r["differing"], r["output_difference"]) == (4, codes, 0, 0) for r in whole)
    assert all(r["layers"] == 0 and r["output_difference"] < 1e-4 for r in real)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    subject = SUBJECTS["digits"]
    return trained(subject, subject.load("digits", None), "W2A2", steps=20)


def compared(model: nn.Module, other: nn.Module) -> dict[str, object]:
    """The figures for a net and the kernels of another."""
    subject = SUBJECTS["digits"]
    images = [x for x, _ in held_out(subject, subject.load("digits", None), 60)]
    runtime = identical.OnKernels(other)
    report = lowbit.verify(model, runtime, list(images), adversarial=False)
    with torch.no_grad():
        expected = torch.cat([model(x) for x in images])
    return identical.figures(model, report, expected, torch.cat(runtime.outputs))


def test_codes_that_differ_do_not_pass(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.bn1.bias[0] += 1
    assert compared(model, model)["passed"]
    found = compared(model, other)
    assert not found["passed"]
    assert found["near_ties"] is None
    assert found["differing"] == sum(found["differing_layers"].values()) > 0
    assert str(found["first_difference"]).startswith("codes of 'conv2'")


def test_the_last_bit_of_an_output_of_whole_numbers_counts(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.bias[3].mul_(1 + 2**-20)
    found = compared(model, other)
    assert (found["differing"], found["predictions_differing"]) == (0, 0)
    assert 0 < found["output_difference"] < 1e-5
    assert not found["passed"]


def test_what_does_not_pass_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(*given: object) -> dict[str, object]:
        return {**figures(*given), "passed": False}

    figures = identical.figures
    monkeypatch.setattr(identical, "figures", broken)
    monkeypatch.setattr(identical, "RUNTIMES", ("kernels",))
    monkeypatch.setattr(sys, "argv", ["identical", *DIGITS, "--settings", "W8A8"])
    with pytest.raises(SystemExit) as left:
        identical.main()
    assert left.value.code == 1
    assert "WRONG" in capsys.readouterr().out
