"""From text to batches: sources of text, token shards on disk, and batches in a seeded, resumable order."""

from minillm.data.batches import Batches
from minillm.data.masking import mask_tokens
from minillm.data.next_sentence import SentencePair, sentence_pairs
from minillm.data.permutation import PermutedTokens, permute_tokens
from minillm.data.shards import Tokens, open_tokens, write_shards
from minillm.data.sources import read_text, read_texts, split_text, split_tokens

__all__ = [
    "Batches",
    "PermutedTokens",
    "SentencePair",
    "Tokens",
    "mask_tokens",
    "open_tokens",
    "permute_tokens",
    "read_text",
    "read_texts",
    "sentence_pairs",
    "split_text",
    "split_tokens",
    "write_shards",
]
