"""The memory that a net takes in a process of its own: python -m benchmarks._inference_memory PEER NET FILE BATCH."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._inference_nets import NETS, Net

STATUS = Path("/proc/self/status")


def measured(peer: str, net: str, file: Path, batch: int) -> dict[str, float] | None:
    """MiB of a fresh process: `peak` while the file is opened and run, `held` afterwards, both beyond the imports.

    None where the system does not tell, or the process fails (its message goes to standard error).
    """
    if not STATUS.exists():
        return None
    command = [sys.executable, "-m", __spec__.name, peer, net, str(file), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"memory of {peer}, {net}, not measured:\n{done.stderr}", file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _kib(key: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _onnx(net: Net, file: Path, batch: int) -> dict[str, float]:
    import onnxruntime

    from benchmarks._inference_peers import INPUT

    images = net.images(batch, seed=0).numpy()
    gc.collect()
    _forget_peak()
    before = _kib("VmRSS")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        opened.run(None, {INPUT: images})
    return _since(before)


def _torch(net: Net, file: Path, batch: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    images = net.images(batch, seed=0)
    gc.collect()
    _forget_peak()
    before = _kib("VmRSS")
    model = _architecture(net).eval()
    with torch.inference_mode():
        for _ in range(3):
            model(images)
    return _since(before)


def _lowbit(net: Net, file: Path, batch: int) -> dict[str, float]:
    import torch

    from lowbit.deploy import load
    from lowbit.deploy.kernels.compiled import compile as compile_model

    torch.set_num_threads(1)
    images = net.images(batch, seed=0)
    gc.collect()
    _forget_peak()
    before = _kib("VmRSS")
    compiled: Any = compile_model(load(_architecture(net), file), threads=1)
    for _ in range(3):
        compiled(images)
    gc.collect()
    return _since(before)


def _architecture(net: Net) -> Any:
    from lowbit.models import build_model

    return build_model(net.spec, net.classes, net.size[0], net.size[1:], seed=0)


def _since(before: int) -> dict[str, float]:
    peak, held = (round((_kib(key) - before) / 1024, 1) for key in ("VmHWM", "VmRSS"))
    return {"peak": peak, "held": held, "imports": round(before / 1024, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("onnx", "torch", "lowbit"))
    parser.add_argument("net", choices=NETS)
    parser.add_argument("file", type=Path)
    parser.add_argument("batch", type=int)
    arguments = parser.parse_args()
    run = {"onnx": _onnx, "torch": _torch, "lowbit": _lowbit}[arguments.peer]
    print(json.dumps(run(NETS[arguments.net], arguments.file, arguments.batch)))


if __name__ == "__main__":
    main()
