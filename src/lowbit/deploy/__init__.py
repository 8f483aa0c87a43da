"""Deployment: trained layers as compact data, and the proof that they compute what the trained model computes."""

from lowbit.deploy.export import Export, export
from lowbit.deploy.files.artefact import load, save
from lowbit.deploy.files.origin import Origin, read_origin
from lowbit.deploy.files.pack import pack, pack_codes, packed_size, unpack, unpack_codes
from lowbit.deploy.files.sizes import Sizes, StoredTensor, sizes
from lowbit.deploy.kernels.compiled import CompiledModule, compile
from lowbit.deploy.measure.bench import BenchResult, bench
from lowbit.deploy.opened import Opened, open_artefact, rebuild
from lowbit.deploy.proof.inputs import Case, adversarial_inputs
from lowbit.deploy.proof.observe import Entry, Trace, observe
from lowbit.deploy.proof.report import Difference, LayerComparison, Report
from lowbit.deploy.proof.verify import verify

__all__ = [
    "BenchResult",
    "Case",
    "CompiledModule",
    "Difference",
    "Entry",
    "Export",
    "LayerComparison",
    "Opened",
    "Origin",
    "Report",
    "Sizes",
    "StoredTensor",
    "Trace",
    "adversarial_inputs",
    "bench",
    "compile",
    "export",
    "load",
    "observe",
    "open_artefact",
    "pack",
    "pack_codes",
    "packed_size",
    "read_origin",
    "rebuild",
    "save",
    "sizes",
    "unpack",
    "unpack_codes",
    "verify",
]
