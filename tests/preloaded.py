"""What the fork server of tests/forked.py imports once for all the processes that it forks."""

import sys
from importlib import import_module

import attrs  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.pyplot
import mlflow.tracking  # noqa: F401
import pytest  # noqa: F401
import scipy.sparse  # noqa: F401
import torch._dynamo  # noqa: F401
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, get_scheduler  # noqa: F401

import trelm_ds.cli
import trelm_ds.corpus
import trelm_ds.evaluation
import trelm_ds.importance
import trelm_ds.settings
import trelm_ds.training  # noqa: F401
from trelm_ds.distributed import build_cpu_op, import_deepspeed

import_deepspeed()
build_cpu_op()
import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # with torch's compiler, which every engine does otherwise
matplotlib.pyplot.close(matplotlib.pyplot.subplots(2)[0])  # the first figure takes half a second
# What has been printed would be printed again by every process that leaves.
sys.stdout.flush()
sys.stderr.flush()
