"""Entity linking beyond anchors: a dictionary of phrases counted in the corpus itself, and voting between entities."""

from trelm_ds.corpus.linking.build import DictionaryOptions, build_dictionary, set_link_probabilities
from trelm_ds.corpus.linking.dictionary import LinkDictionary
from trelm_ds.corpus.linking.linker import LinkedMention, Linker, LinkingOptions
from trelm_ds.corpus.linking.statistics import AnchorCounts, OccurrenceCounts, count_anchors, count_occurrences

__all__ = [
    "AnchorCounts",
    "DictionaryOptions",
    "LinkDictionary",
    "LinkedMention",
    "Linker",
    "LinkingOptions",
    "OccurrenceCounts",
    "build_dictionary",
    "count_anchors",
    "count_occurrences",
    "set_link_probabilities",
]
