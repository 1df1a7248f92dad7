"""trelm-ds: pre-trains TRELM, a knowledge-enhanced BERT/RoBERTa, with DeepSpeed."""

__version__ = "0.1.0"
