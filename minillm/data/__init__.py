"""From text to batches: sources of text, token shards on disk, and batches in a seeded, resumable order."""

from minillm.data.batches import Batches
from minillm.data.masking import mask_tokens
from minillm.data.shards import Tokens, open_tokens, write_shards
from minillm.data.sources import read_text, read_texts, split_text, split_tokens

__all__ = [
    "Batches",
    "Tokens",
    "mask_tokens",
    "open_tokens",
    "read_text",
    "read_texts",
    "split_text",
    "split_tokens",
    "write_shards",
]
