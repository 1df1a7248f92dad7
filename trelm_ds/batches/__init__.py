"""Builds what a rank reads in each step, ahead of time: packed and masked micro-batches with their knowledge."""

from trelm_ds.batches.annotator import Annotator
from trelm_ds.batches.batch import Batch
from trelm_ds.batches.knowledge_index import KNOWLEDGE_FILES, KnowledgeIndex
from trelm_ds.batches.loader import StepBatches, StepDataset, StepLoader
from trelm_ds.batches.masking import Masker
from trelm_ds.batches.step_reader import StepReader

__all__ = [
    "KNOWLEDGE_FILES",
    "Annotator",
    "Batch",
    "KnowledgeIndex",
    "Masker",
    "StepBatches",
    "StepDataset",
    "StepLoader",
    "StepReader",
]
