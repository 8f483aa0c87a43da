"""Mutated artefacts: none may crash `lowbit.load`, none may load and then compute something else.

    python -m benchmarks.fuzz_artefact --mutations 10000

A mutated file is either refused with a `LowbitError`, and the model is then as it was, or loads and gives the very
outputs of the whole file. Files whose header was edited and sealed again with a right checksum are somebody's intent,
not damage: of these only the first is asked, that nothing but a `LowbitError` is raised. What loads is compiled as
well: the kernels take whatever a file says, and compute what PyTorch does.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import lowbit
from lowbit.deploy import load, save
from lowbit.deploy.files import container

Json = dict[str, Any]


def tiny_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )


def trained() -> tuple[nn.Module, Tensor]:
    """A converted model whose scales are learned, and an input."""
    torch.manual_seed(0)
    overrides: Json = {
        "3": {"quantizer": "sign(scale=mean-abs, granularity=channel)"},
        "6": {"weights": 3, "activations": 4},
    }
    model = lowbit.convert(tiny_model(), weights=1, activations=2, overrides=overrides)
    x = torch.rand(3, 1, 8, 8)
    model(x)
    return model.eval(), x


def split(data: bytes) -> tuple[Json, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(head: Json, body: bytes) -> bytes:
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def flip(data: bytes, rng: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
    return bytes(result)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    block = rng.choice((rng.randbytes(rng.randint(1, 16)), bytes(rng.randint(1, 64)), b"\xff" * rng.randint(1, 64)))
    return data[:start] + block + data[start + len(block) :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\0", rng.randbytes(rng.randint(1, 64)), data))


def swap(data: bytes, rng: random.Random) -> bytes:
    first, second = sorted(rng.sample(range(len(data)), 2))
    size = rng.randint(1, max(1, min(64, second - first, len(data) - second)))
    parts = data[first : first + size], data[second : second + size]
    return data[:first] + parts[1] + data[first + size : second] + parts[0] + data[second + size :]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


def edit_layout(data: bytes, rng: random.Random) -> bytes:
    """The safetensors header: names, dtypes, shapes, places and order of tensors."""
    head, body = split(data)
    first, second = rng.sample([name for name in head if name != "__metadata__"], 2)
    kind = rng.randrange(7)
    if kind == 0:
        head[f"{first}{rng.choice('ab')}"] = head.pop(first)
    elif kind == 1:
        head[first], head[second] = head[second], head[first]
    elif kind == 2:
        head[first]["dtype"] = rng.choice(("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64"))
    elif kind == 3:
        head[first]["shape"] = rng.choice(
            ([], [1], [2**40], [-1], head[first]["shape"][::-1], [*head[first]["shape"], 1])
        )
    elif kind == 4:
        head[first]["data_offsets"] = rng.choice((head[second]["data_offsets"], [0, 2**50], [5, 1], [0, 0]))
    elif kind == 5:
        del head[first]
    else:
        head["__metadata__"][rng.choice(("a", "format"))] = "pt"
    return joined(head, body)


VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "sign",
    "lsq(bits=3)",
    "lsq(bits=99999999)",
    "(" * 300,
    [],
    [1],
    {},
    {"a": 1},
)
"""What an edited header may hold anywhere."""


def edit_value(node: Any, rng: random.Random) -> Any:
    """A JSON value with one of its parts, however deep, removed, renamed or put another value in its place."""
    if not isinstance(node, dict | list) or not node or rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(node, list):
        place = rng.randrange(len(node))
        return [*node[:place], edit_value(node[place], rng), *node[place + 1 :]]
    key = rng.choice(sorted(node))
    rest = {name: value for name, value in node.items() if name != key}
    what = rng.random()
    if what < 0.15:
        return rest
    if what < 0.3:
        return {**rest, f"{key}0": node[key]}
    return {**rest, key: edit_value(node[key], rng)}


def edit_header(data: bytes, rng: random.Random) -> bytes:
    """lowbit's own header, with the checksum left as it was."""
    head, body = split(data)
    header = edit_value(json.loads(head["__metadata__"]["lowbit"]), rng)
    head["__metadata__"]["lowbit"] = json.dumps(header)
    return joined(head, body)


def edit_and_seal(data: bytes, rng: random.Random) -> bytes:
    """lowbit's own header or a tensor, with a right checksum."""
    head, _ = split(data)
    header = json.loads(head["__metadata__"]["lowbit"])
    tensors = safetensors.torch.load(data)
    del header["sha256"]
    if rng.random() < 0.7:
        edited = edit_value({"modules": header["modules"], "shared": header["shared"]}, rng)
        header = {**header, **edited} if isinstance(edited, dict) else header
    else:
        name = rng.choice(sorted(tensors))
        shown = tensors.pop(name)
        change = rng.randrange(5)
        if change == 0:
            tensors[f"{name}0"] = shown
        elif change == 1:
            tensors[name] = torch.full_like(shown, torch.nan if shown.is_floating_point() else 1)
        elif change == 2:
            tensors[name] = shown.reshape(-1)[: max(0, shown.numel() - 1)].clone()
        elif change == 3:
            tensors[name] = shown.to(rng.choice((torch.float16, torch.uint8, torch.float64)))
    header["sha256"] = container._checksum(header, tensors)
    return safetensors.torch.save(tensors, {"lowbit": json.dumps(header)})


DAMAGE = (flip, flip, overwrite, truncate, extend, swap, cut_out, edit_layout, edit_header)


def fuzz(mutations: int, seed: int, folder: Path) -> Counter[str]:
    """How many mutated files were refused, harmless or sealed again, by the kind of mutation.

    Raises: AssertionError for a file that loads and computes something else, or changes a model and is refused;
    whatever else `load` raises but a `LowbitError`.
    """
    model, x = trained()
    plain = tiny_model()
    expected, before = model(x), {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    whole = folder / "whole.lowbit"
    save(model, whole)
    assert torch.equal(load(tiny_model(), whole)(x), expected)
    data, path, found = whole.read_bytes(), folder / "mutated.lowbit", Counter[str]()
    for number in range(mutations):
        rng = random.Random(f"{seed}/{number}")
        mutate: Callable[[bytes, random.Random], bytes] = edit_and_seal if rng.random() < 0.15 else rng.choice(DAMAGE)
        path.write_bytes(mutate(data, rng))
        target = copy.deepcopy(plain)
        try:
            load(target, path)
        except lowbit.LowbitError:
            found[f"{mutate.__name__}: refused"] += 1
            assert [type(m) for m in target] == [type(m) for m in plain], f"mutation {number} changed the model"
            assert target.training, f"mutation {number} changed the model"
            same = all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
            assert same, f"mutation {number} changed the model"
            continue
        agrees = on_kernels(target, x)
        assert agrees is not False, f"mutation {number} of seed {seed} computes something else on the kernels"
        if mutate is edit_and_seal:
            found["edit_and_seal: loaded" if agrees else "edit_and_seal: loaded, without a finite result"] += 1
            continue
        assert torch.equal(target(x), expected), f"mutation {number} of seed {seed} gives a silent wrong answer"
        found[f"{mutate.__name__}: harmless"] += 1
    return found


def on_kernels(model: nn.Module, x: Tensor) -> bool | None:
    """Whether a model computes the same when compiled; None where its results are no numbers."""
    with torch.no_grad():
        expected, given = model(x), lowbit.compile(model, threads=1)(x)
    return torch.equal(given, expected) if bool(expected.isfinite().all()) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("lowbit").setLevel(logging.ERROR)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(options.mutations, options.seed, Path(folder))
    for kind, count in sorted(found.items()):
        print(f"{kind:28} {count:6}")
    refused = sum(count for kind, count in found.items() if kind.endswith("refused"))
    print(
        f"{options.mutations} mutations, seed {options.seed}: {refused} refused with a plain message, no crash, no "
        f"silent wrong answer ({time.perf_counter() - start:.0f} s)"
    )


if __name__ == "__main__":
    main()
