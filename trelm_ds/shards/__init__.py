"""The dataset on disk: webdataset tar shards, manifest, verification, sample order, reader."""

from trelm_ds.shards.format import Block, Sequence
from trelm_ds.shards.manifest import CARD, DROPPED, HELD_OUT_FACTS, HELD_OUT_TEXT, LENGTHS, Manifest
from trelm_ds.shards.order import SampleOrder
from trelm_ds.shards.reader import Damage, ShardReader
from trelm_ds.shards.repair import repair
from trelm_ds.shards.storage import Storage, open_storage
from trelm_ds.shards.substitution import Substitution
from trelm_ds.shards.verify import check_files, verify
from trelm_ds.shards.writer import BLOCK_SEQUENCES, ShardWriter

__all__ = [
    "BLOCK_SEQUENCES",
    "CARD",
    "DROPPED",
    "HELD_OUT_FACTS",
    "HELD_OUT_TEXT",
    "LENGTHS",
    "Block",
    "Damage",
    "Manifest",
    "SampleOrder",
    "Sequence",
    "ShardReader",
    "ShardWriter",
    "Storage",
    "Substitution",
    "check_files",
    "open_storage",
    "repair",
    "verify",
]
