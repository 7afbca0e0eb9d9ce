"""Check the vocabulary of a Unigram tokenizer: its pieces, their scores, and their ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from minillm.errors import InputError


def check_pieces(
    pieces: Sequence[tuple[str, float]], ids: Mapping[str, int], unk_id: int | None, specials: Mapping[str, int]
) -> None:
    """Refuse pieces that cannot be a vocabulary."""
    for i, (piece, score) in enumerate(pieces):
        if not piece or ids[piece] != i:
            raise InputError(f"UnigramTokenizer: piece {piece!r} at {i} is empty or repeated; give each once")
        if not math.isfinite(score):
            raise InputError(f"UnigramTokenizer: piece {piece!r} has score {score}; give a log probability")
    if unk_id is not None and not 0 <= unk_id < len(pieces):
        raise InputError(f"UnigramTokenizer: unk_id is {unk_id}, expected one of the {len(pieces)} pieces, or None")
    for token, i in specials.items():
        if ids.get(token, i) != i:
            raise InputError(
                f"UnigramTokenizer: special token {token!r} has id {i}, but is the piece {ids[token]}; give it that id"
            )
