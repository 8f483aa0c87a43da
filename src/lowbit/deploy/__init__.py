"""Deployment: trained layers as compact data."""

from lowbit.deploy.pack import pack, pack_codes, packed_size, unpack, unpack_codes

__all__ = ["pack", "pack_codes", "packed_size", "unpack", "unpack_codes"]
