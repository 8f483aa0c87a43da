"""Deployment: trained layers as compact data, and the proof that they compute what the trained model computes."""

from lowbit.deploy.artefact import load, save
from lowbit.deploy.compiled import CompiledModule, compile
from lowbit.deploy.export import Export, export
from lowbit.deploy.inputs import Case, adversarial_inputs
from lowbit.deploy.observe import Entry, Trace, observe
from lowbit.deploy.pack import pack, pack_codes, packed_size, unpack, unpack_codes
from lowbit.deploy.report import Difference, LayerComparison, Report
from lowbit.deploy.sizes import Sizes, StoredTensor, sizes
from lowbit.deploy.verify import verify

__all__ = [
    "Case",
    "CompiledModule",
    "Difference",
    "Entry",
    "Export",
    "LayerComparison",
    "Report",
    "Sizes",
    "StoredTensor",
    "Trace",
    "adversarial_inputs",
    "compile",
    "export",
    "load",
    "observe",
    "pack",
    "pack_codes",
    "packed_size",
    "save",
    "sizes",
    "unpack",
    "unpack_codes",
    "verify",
]
