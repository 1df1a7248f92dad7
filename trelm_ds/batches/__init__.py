"""Builds what a rank reads in each step, ahead of time: packed and masked micro-batches with their knowledge."""

from trelm_ds.batches.annotator import Annotator
from trelm_ds.batches.collator import BatchPart, Collator, Sequences, SideDocuments
from trelm_ds.batches.knowledge_index import KNOWLEDGE_FILES, KnowledgeIndex
from trelm_ds.batches.loader import Step, StepDataset, StepLoader
from trelm_ds.batches.masking import Masker, mask_rate
from trelm_ds.batches.prefetch import DevicePrefetcher
from trelm_ds.batches.step_reader import StepReader

__all__ = [
    "KNOWLEDGE_FILES",
    "Annotator",
    "BatchPart",
    "Collator",
    "DevicePrefetcher",
    "KnowledgeIndex",
    "Masker",
    "Sequences",
    "SideDocuments",
    "Step",
    "StepDataset",
    "StepLoader",
    "StepReader",
    "mask_rate",
]
