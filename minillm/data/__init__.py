"""Sources of text, token shards on disk, and batches in a seeded, resumable order."""

from minillm.data.batches import Batches
from minillm.data.denoising import denoising_pair, infill, permute_sentences
from minillm.data.instructions import Example, Instruction, encode_instruction, read_instructions
from minillm.data.masking import mask_tokens
from minillm.data.next_sentence import SentencePair, sentence_pairs
from minillm.data.packing import best_fit_decreasing, rows_of
from minillm.data.pairs import PairBatch, PairBatches, pad_pairs
from minillm.data.permutation import PermutedTokens, permute_tokens
from minillm.data.records import Records, read_records
from minillm.data.shards import Tokens, open_tokens, write_shards
from minillm.data.sources import read_text, read_texts, split_text, split_tokens

__all__ = [
    "Batches",
    "Example",
    "Instruction",
    "PairBatch",
    "PairBatches",
    "PermutedTokens",
    "Records",
    "SentencePair",
    "Tokens",
    "best_fit_decreasing",
    "denoising_pair",
    "encode_instruction",
    "infill",
    "mask_tokens",
    "open_tokens",
    "pad_pairs",
    "permute_sentences",
    "permute_tokens",
    "read_instructions",
    "read_records",
    "read_text",
    "read_texts",
    "rows_of",
    "sentence_pairs",
    "split_text",
    "split_tokens",
    "write_shards",
]
