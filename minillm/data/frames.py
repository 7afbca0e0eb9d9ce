"""The special tokens around one text or two, as each family of encoders has learnt to read them.

    BERT, DistilBERT   [CLS] a [SEP]       [CLS] a [SEP] b [SEP]        kinds of sentences: 0 for a, 1 for b
    RoBERTa, BART      <s> a </s>          <s> a </s></s> b </s>
    XLNet              a <sep> <cls>       a <sep> b <sep> <cls>        segments: 0, 1, and 2 for <cls>

A head for texts reads the vector of one of them, [CLS] here, and a question without an answer in a window points at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minillm.errors import InputError
from minillm.tokenizers import Tokenizer

TYPED = ("bert", "xlnet")  # families that are told which text a token is of
DOUBLED = ("roberta", "bart")  # families with two tokens between the texts
BEGINS, ENDS = ("cls_token", "bos_token", "eos_token"), ("sep_token", "eos_token", "bos_token")


class Frame(NamedTuple):
    """The ids of the tokens before, between and after the texts."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    typed: bool  # True if the model has kinds of sentences
    cls_last: bool  # True if [CLS] is the last token, as in XLNet

    def around(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """The ids of one text or two in their frame, and the kind of sentence of each id."""
        ids = [*self.before, *first]
        types = [0] * len(ids)
        if second is not None:
            ids += [*self.between, *second]
            types += [0] * len(self.between) + [1] * len(second)
        ids += self.after
        types += [0 if second is None else 1] * len(self.after)
        if self.cls_last:
            types[-1] = 2
        return ids, types

    def cls(self, length: int) -> int:
        """The position of [CLS] among so many ids."""
        return length - 1 if self.cls_last else 0


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], frame: Frame, padding_id: int) -> dict[str, np.ndarray]:
    """The batch of some framed texts, ids and types each: ids (B, T), lengths (B,), and types (B, T) if there are any.

    Padding follows each text.
    """
    lengths = np.array([len(ids) for ids, _ in rows])
    batch = {"ids": np.full((len(rows), lengths.max()), padding_id, np.int64), "lengths": lengths}
    if frame.typed:
        batch["types"] = np.zeros_like(batch["ids"])
    for number, (ids, types) in enumerate(rows):
        batch["ids"][number, : len(ids)] = ids
        if frame.typed:
            batch["types"][number, : len(ids)] = types
    return batch


def frame_of(tokenizer: Tokenizer, family: str) -> Frame:
    """The frame that a tokenizer puts around a text; of one that puts none, its first special tokens with such roles.

    family: the model's file, such as "bert".
    Raises: InputError for a tokenizer without a token that begins or ends a text.
    """
    marked = tokenizer.build_inputs_with_special_tokens([-1])
    place = marked.index(-1)
    before, after = tuple(marked[:place]), tuple(marked[place + 1 :])
    if not before and not after:
        begin, end = _first_of(tokenizer, BEGINS), _first_of(tokenizer, ENDS)
        before, after = ((), (end, begin)) if family == "xlnet" else ((begin,), (end,))
    cls_last = family == "xlnet"
    between = after[:1] if cls_last else after * 2 if family in DOUBLED else after
    return Frame(before, between, after, family in TYPED, cls_last)


def _first_of(tokenizer: Tokenizer, roles: Sequence[str]) -> int:
    names = {**tokenizer.NAMES, **tokenizer.names}
    for role in roles:
        if (found := tokenizer.special_tokens.get(names.get(role, ""))) is not None:
            return found
    raise InputError(
        f"frame_of: the tokenizer has no special token that begins and ends a text; train it with special tokens such "
        f"as [CLS] and [SEP] (it has {', '.join(tokenizer.special_tokens) or 'none'})"
    )
