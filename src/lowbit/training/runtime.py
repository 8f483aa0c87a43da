"""Devices, processes, threads and seeds: everything global that a run sets, it sets here and puts back."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from lowbit._errors import ConfigError, LowbitError
from lowbit.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}


def choose_device(device: str) -> str:
    """`"cpu"` or `"cuda"`. Raises: ConfigError when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu, or install torch for CUDA")
    return "cuda" if available and device != "cpu" else "cpu"


def launch(function: Callable[[Fabric, TrainConfig], T], config: TrainConfig) -> T:
    """Run `function(fabric, config)` in as many processes as `config.devices` says; returns rank 0's result.

    One device needs no other process; under `torchrun` they exist already; otherwise they are spawned, for which
    `function` must be found by its name in an importable module.

    Raises: rank 0's LowbitError; ConfigError when the devices asked for are not there.
    """
    launched = torch.distributed.is_torchelastic_launched()
    if config.devices == 1 or launched:
        outcome = _work(function, config)
    else:
        results = multiprocessing.get_context("spawn").SimpleQueue()
        spawn(_spawned, args=(function, config, _free_port(), results), nprocs=config.devices)  # type: ignore[no-untyped-call]
        outcome = results.get()
    if isinstance(outcome, LowbitError):
        raise outcome
    return outcome


def _spawned(
    rank: int, function: Callable[[Fabric, TrainConfig], T], config: TrainConfig, port: int, results: Any
) -> None:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    outcome = _work(function, config)
    if rank == 0:
        results.put(outcome)


def _work(function: Callable[[Fabric, TrainConfig], T], config: TrainConfig) -> T | LowbitError:
    """Do this process's part; a LowbitError comes back as a value, since it would lose its type between processes."""
    try:
        fabric = _build_fabric(config)
        fabric.launch()
        with _globals_set(fabric, config):
            return function(fabric, config)
    except LowbitError as error:
        return error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _build_fabric(config: TrainConfig) -> Fabric:
    """The Fabric that holds this process's device, its place among the others, and the precision."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    for name in ("lightning.fabric", "lightning_fabric"):  # its notices repeat what our own headline says
        logging.getLogger(name).setLevel(logging.WARNING)
    accelerator = choose_device(config.device)
    launched = torch.distributed.is_torchelastic_launched()
    world = int(os.environ["WORLD_SIZE"]) if launched else config.devices
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if launched else config.devices
    if world != config.devices:
        raise ConfigError(f"torchrun started {world} processes but --devices is {config.devices}; make them equal")
    if accelerator == "cuda" and local > torch.cuda.device_count():
        raise ConfigError(f"--devices {local}: torch sees {torch.cuda.device_count()} CUDA devices here")
    precision: Any = _PRECISION[config.precision]
    return Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=precision,
        plugins=None if launched else LightningEnvironment(),
    )


@contextmanager
def _globals_set(fabric: Fabric, config: TrainConfig) -> Iterator[None]:
    """Fix threads, seeds and deterministic algorithms for the length of a run, then put everything back."""
    cuda = fabric.device.type == "cuda"
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    share = max(1, (os.cpu_count() or 1) // fabric.world_size) if fabric.world_size > 1 else before[0]
    with torch.random.fork_rng(devices=[fabric.device] if cuda else []):
        try:
            torch.set_num_threads(config.threads or share)
            if cuda:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True, warn_only=True)
                torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            torch.manual_seed(config.seed + fabric.global_rank)
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1], warn_only=before[2])
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[3:]


def on_rank_zero(fabric: Fabric, action: Callable[[], T]) -> T:
    """Do `action` in rank 0 alone and give every rank its result; a LowbitError is raised in every rank."""
    outcome: Any = None
    if fabric.is_global_zero:
        try:
            outcome = action()
        except LowbitError as error:
            outcome = error
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, LowbitError):
        raise outcome
    return cast(T, outcome)


def share_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Give every rank the buffers of rank 0 (batch-norm statistics above all); nothing to do in a single process."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def place(fabric: Fabric, model: nn.Module, channels_last: bool) -> None:
    """Move `model` to the device, in channels-last order if asked to."""
    model.to(fabric.device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def all_sum(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of `values` over all ranks."""
    if fabric.world_size > 1:
        torch.distributed.all_reduce(values)
    return values


def rng_states(fabric: Fabric) -> list[dict[str, Tensor]]:
    """torch's random-number states of every rank, in order of rank."""
    own = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(fabric.device)
    if fabric.world_size == 1:
        return [own]
    gathered: list[dict[str, Tensor]] = [{} for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def restore_rng(fabric: Fabric, states: list[dict[str, Tensor]]) -> None:
    """Put back the state of this rank from what `rng_states` gave."""
    own = states[fabric.global_rank]
    torch.set_rng_state(own["cpu"])
    if fabric.device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], fabric.device)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: what torch allocated on a CUDA device, else the process's resident set.

    The operating system keeps the latter's peak since the process began and cannot reset it: it includes Python and
    torch themselves, and whatever the process did before this run.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
