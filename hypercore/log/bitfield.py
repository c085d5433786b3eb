"""Moved to the ground floor, where the protocol may use it too; this name goes when its last importer does."""

from hypercore.bitfield import PAGE_BLOCKS, PAGE_SIZE, Bitfield

__all__ = ["PAGE_BLOCKS", "PAGE_SIZE", "Bitfield"]
