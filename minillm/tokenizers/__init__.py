"""Tokenizers: text to token ids and back."""

from __future__ import annotations

from minillm.tokenizers.base import Tokenizer
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.chain import ChainTokenizer
from minillm.tokenizers.character import CharacterTokenizer
from minillm.tokenizers.sentencepiece import SentencePieceBPE
from minillm.tokenizers.unigram import UnigramTokenizer
from minillm.tokenizers.wordpiece import WordPieceTokenizer

__all__ = [
    "BPETokenizer",
    "ChainTokenizer",
    "CharacterTokenizer",
    "SentencePieceBPE",
    "Tokenizer",
    "UnigramTokenizer",
    "WordPieceTokenizer",
]
