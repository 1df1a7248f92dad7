"""The dataset on disk: webdataset tar shards, manifest, verification, exact order, reader."""

from trelm_ds.shards.format import Block, Sequence
from trelm_ds.shards.manifest import Manifest
from trelm_ds.shards.order import SampleOrder
from trelm_ds.shards.reader import ShardReader
from trelm_ds.shards.verify import verify
from trelm_ds.shards.writer import ShardWriter

__all__ = ["Block", "Manifest", "SampleOrder", "Sequence", "ShardReader", "ShardWriter", "verify"]
