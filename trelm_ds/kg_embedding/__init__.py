"""Vectors of entities and relations trained on the graph of a dataset: TransE, DistMult, RotatE."""

from trelm_ds.kg_embedding.options import VectorOptions
from trelm_ds.kg_embedding.scores import METHODS
from trelm_ds.kg_embedding.train import Trained, format_metrics, train_vectors

__all__ = ["METHODS", "Trained", "VectorOptions", "format_metrics", "train_vectors"]
