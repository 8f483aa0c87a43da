"""Deployment: trained layers as compact data, and the proof that they compute what the trained model computes."""

from lowbit.deploy.artefact import load, save
from lowbit.deploy.bench import BenchResult, bench
from lowbit.deploy.compiled import CompiledModule, compile
from lowbit.deploy.export import Export, export
from lowbit.deploy.inputs import Case, adversarial_inputs
from lowbit.deploy.observe import Entry, Trace, observe
from lowbit.deploy.opened import Opened, open_artefact, rebuild
from lowbit.deploy.origin import Origin, read_origin
from lowbit.deploy.pack import pack, pack_codes, packed_size, unpack, unpack_codes
from lowbit.deploy.report import Difference, LayerComparison, Report
from lowbit.deploy.sizes import Sizes, StoredTensor, sizes
from lowbit.deploy.verify import verify

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
