"""The oldest formats of vocabularies: GPT-2's `vocab.json` and `merges.txt`, and BERT's `vocab.txt`.

GPT-2 spells each byte as a visible character. The visible ones of Latin-1 stand for themselves; the other bytes, in
order, are the characters from U+0100 on. A space is "\\u0120": b" the" is "Ġthe". A merge is a line with two
tokens and a space between. BERT's file has one token a line, the first with id 0.
Neither has tokens with line ends in them, so that a line may end in any way: "\\n", "\\r\\n" or "\\r" alone.

Sources: `encoder.py` of GPT-2's code; `tokenization.py` of BERT's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from minillm.errors import InputError
from minillm.tokenizers.files import read_chunks, read_json, write_text

Merge = tuple[bytes, bytes]


def character_of_bytes() -> list[str]:
    """The character by which GPT-2's files spell each byte: itself if visible, otherwise one from U+0100 on."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unseen = iter(range(256, 512))
    return [chr(byte if byte in seen else next(unseen)) for byte in range(256)]


CHARACTER_OF_BYTE = character_of_bytes()
BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}


def spell(token: bytes) -> str:
    """Write bytes as GPT-2's files do: b" the" is "Ġthe"."""
    return "".join([CHARACTER_OF_BYTE[byte] for byte in token])


def unspell(token: str) -> bytes:
    """The bytes of a token that is spelled as in GPT-2's files."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError as error:
        raise ValueError(f"{token!r} has {error}, which stands for no byte") from None


def read_merge(line: str) -> tuple[bytes, bytes]:
    """Read a merge in the form of GPT-2's files: two tokens with a space between."""
    left, _, right = line.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(f"{line!r} is not two tokens with one space between")
    return unspell(left), unspell(right)


def read_lines(where: str, path: Path) -> list[str]:
    """The lines of a text file without their ends."""
    text = "".join(read_chunks(where, path)).replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def read_gpt2_files(
    where: str, vocab_json: Path, merges_txt: Path
) -> tuple[dict[bytes, int], list[Merge], dict[str, int]]:
    """The vocabulary, merges and special tokens of GPT-2's two files (see `BPETokenizer.from_gpt2_files`)."""
    spelled = read_json(where, vocab_json)
    if not isinstance(spelled, dict):
        raise InputError(f"{where}: {vocab_json} holds no table of tokens and ids; give GPT-2's vocab.json")
    merges = []
    for number, line in enumerate(read_lines(where, merges_txt), start=1):
        if line and not (number == 1 and line.startswith("#version")):
            try:
                merges.append(read_merge(line))
            except ValueError as error:
                raise InputError(
                    f"{where}: line {number} of {merges_txt} is not a merge ({error}); give GPT-2's merges.txt"
                ) from error
    ordinary = {*BYTE_OF_CHARACTER, *(spell(left + right) for left, right in merges)}
    vocab = {unspell(token): i for token, i in spelled.items() if token in ordinary}
    return vocab, merges, {token: i for token, i in spelled.items() if token not in ordinary}


def write_gpt2_files(
    where: str, folder: Path, vocab: Mapping[bytes, int], merges: Iterable[Merge], special_tokens: Mapping[str, int]
) -> None:
    """Write GPT-2's two files."""
    spelled = {spell(token): i for token, i in vocab.items()}
    check_apart(where, spelled, special_tokens)
    lines = ["#version: 0.2", *(f"{spell(left)} {spell(right)}" for left, right in merges), ""]
    by_id = sorted({**spelled, **special_tokens}.items(), key=lambda item: item[1])
    write_text(where, folder / "vocab.json", json.dumps(dict(by_id)))
    write_text(where, folder / "merges.txt", "\n".join(lines))


def read_vocab_txt(where: str, path: Path) -> dict[str, int]:
    """The tokens of BERT's file with their ids."""
    ids: dict[str, int] = {}
    for i, token in enumerate(read_lines(where, path)):
        if ids.setdefault(token, i) != i:
            raise InputError(
                f"{where}: {path} has {token!r} in line {ids[token] + 1} and again in line {i + 1}; "
                "give a file that has each token once"
            )
    return ids


def write_vocab_txt(
    where: str, path: Path, tokens: Sequence[str], ordinary: Collection[str], special_tokens: Iterable[str]
) -> None:
    """Write BERT's file: every token in the order of its id."""
    for token in tokens:
        if "\n" in token or "\r" in token:
            raise InputError(f"{where}: token {token!r} has a line end, which the file cannot hold; use save")
    check_apart(where, ordinary, special_tokens)
    write_text(where, path, "".join([f"{token}\n" for token in tokens]))


def check_apart(where: str, ordinary: Collection[str], special_tokens: Iterable[str]) -> None:
    """Refuse special tokens that are spelled like ordinary ones."""
    if token := next((token for token in special_tokens if token in ordinary), None):
        raise InputError(f"{where}: special token {token!r} is spelled as an ordinary token; use save instead")
