"""Sources of text, token shards on disk, and batches in a seeded, resumable order."""

from minillm.data.batches import Batches
from minillm.data.denoising import denoising_pair, infill, permute_sentences
from minillm.data.masking import mask_tokens
from minillm.data.next_sentence import SentencePair, sentence_pairs
from minillm.data.pairs import PairBatch, PairBatches, pad_pairs
from minillm.data.permutation import PermutedTokens, permute_tokens
from minillm.data.shards import Tokens, open_tokens, write_shards
from minillm.data.sources import read_text, read_texts, split_text, split_tokens

__all__ = [
    "Batches",
    "PairBatch",
    "PairBatches",
    "PermutedTokens",
    "SentencePair",
    "Tokens",
    "denoising_pair",
    "infill",
    "mask_tokens",
    "open_tokens",
    "pad_pairs",
    "permute_sentences",
    "permute_tokens",
    "read_text",
    "read_texts",
    "sentence_pairs",
    "split_text",
    "split_tokens",
    "write_shards",
]
