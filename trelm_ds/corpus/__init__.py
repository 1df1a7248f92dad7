"""Offline preparation: turns dumps and linked text into token sequences with entity mentions."""

from trelm_ds.corpus.options import PrepareOptions
from trelm_ds.corpus.pipeline import (
    ENTITIES_FOLDER,
    GRAPH_FOLDER,
    NAMES_FOLDER,
    TOKEN_COUNTS,
    TOKENIZER_FOLDER,
    WORDS_FOLDER,
)
from trelm_ds.corpus.prepare import missing_parts, prepare
from trelm_ds.corpus.tokenizer import (
    TokenizerInfo,
    check_vocabulary,
    describe,
    encode_literally,
    inverse_marker,
    load_tokenizer,
    word_starts,
)
from trelm_ds.corpus.tokenizer_files import VOCABULARIES, read_tokenizer
from trelm_ds.corpus.words import WordTable, words_of

__all__ = [
    "ENTITIES_FOLDER",
    "GRAPH_FOLDER",
    "NAMES_FOLDER",
    "TOKENIZER_FOLDER",
    "TOKEN_COUNTS",
    "VOCABULARIES",
    "WORDS_FOLDER",
    "PrepareOptions",
    "TokenizerInfo",
    "WordTable",
    "check_vocabulary",
    "describe",
    "encode_literally",
    "inverse_marker",
    "load_tokenizer",
    "missing_parts",
    "prepare",
    "read_tokenizer",
    "word_starts",
    "words_of",
]
