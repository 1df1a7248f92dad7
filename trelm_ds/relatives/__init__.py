"""Checkpoints that related projects published, turned into plain Hugging Face folders: one file each, one registry."""

from trelm_ds.relatives.conversion import RELATIVES, Report, convert

__all__ = ["RELATIVES", "Report", "convert"]
