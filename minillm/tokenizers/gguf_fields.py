"""Read a tokenizer from the fields `tokenizer.ggml.*` of a .gguf file, the format of llama.cpp.

`model` is "gpt2" for byte-level BPE, whose tokens and merges are spelled as in GPT-2's files, and "llama" for
SentencePiece's BPE, whose pieces have scores. `token_type` says what each token is: 1 ordinary, 2 unknown, 3 control,
4 user-defined, 5 unused, 6 a byte.

Source: `llama-vocab.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.saved import Parts
from minillm.tokenizers.vocab_files import BYTE_OF_CHARACTER, read_merge, unspell

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

# llama.cpp's names of the patterns (`tokenizer.ggml.pre`), with the other settings in the models' own files.
PATTERNS = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "smollm": "smollm",
    "starcoder": "smollm",
    "llama-bpe": "llama3",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "gpt-4o": "gpt4o",
}
OPTIONS: dict[str, dict[str, Any]] = {"llama3": {"ignore_merges": True}, "qwen2": {"normalizer": "NFC"}}
# llama.cpp's defaults for the fields that a file with a SentencePiece model may lack.
SENTENCEPIECE = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "add_bos_token": True,
    "add_eos_token": False,
    "add_space_prefix": True,
}


def gguf_model(fields: Mapping[str, Any]) -> Any:
    """The kind of tokenizer in the fields: "gpt2", "llama", ..."""
    return fields.get("tokenizer.ggml.model")


def read_gguf_bpe(where: str, fields: Mapping[str, Any]) -> Parts:
    """See `BPETokenizer.from_gguf_fields`."""
    given = short_names(where, fields, "gpt2", "byte-level BPE")
    pre = given.get("pre", "default")
    if pre not in PATTERNS:
        raise InputError(f"{where}: tokenizer.ggml.pre is {pre!r}{did_you_mean(str(pre), PATTERNS)}")
    tokens, types = given["tokens"], given["token_type"]
    special_tokens = tokens_of(tokens, types, (CONTROL, USER_DEFINED))
    vocab = {
        unspell(token) if BYTE_OF_CHARACTER.keys() >= {*token} else token.encode(): i
        for i, token in enumerate(tokens)
        if types[i] not in (CONTROL, USER_DEFINED)
    }
    arguments = {
        "vocab": vocab,
        "merges": [read_merge(line) for line in given["merges"]],
        "special_tokens": special_tokens,
        "pattern": PATTERNS[pre],
        "drop_bytes": any(bytes([byte]) not in vocab for byte in range(256)),
        **OPTIONS.get(PATTERNS[pre], {}),
    }
    names = read_names(given, tokens, special_tokens)
    return Parts(arguments, read_around(given, names), names)


def read_gguf_sentencepiece(where: str, fields: Mapping[str, Any]) -> Parts:
    """See `SentencePieceBPE.from_gguf_fields`."""
    given = {**SENTENCEPIECE, **short_names(where, fields, "llama", "SentencePiece's BPE")}
    tokens, types, scores = given["tokens"], given["token_type"], given["scores"]
    specials = (UNKNOWN, CONTROL, USER_DEFINED)
    special_tokens = tokens_of(tokens, types, specials)
    names = read_names(given, tokens, special_tokens)
    arguments = {
        "vocab": {token: i for i, token in enumerate(tokens) if types[i] not in specials},
        "merges": {
            token: float(scores[i])
            for i, token in enumerate(tokens)
            if types[i] not in (*specials, BYTE) and len(token) > 1
        },
        "special_tokens": special_tokens,
        "unk_token": names.get("unk_token"),
        "byte_fallback": BYTE in types,
        "prepend_scheme": "stretch" if given["add_space_prefix"] else "never",
        "strip_space": bool(given["add_space_prefix"]),
    }
    return Parts(arguments, read_around(given, names), names)


def short_names(where: str, fields: Mapping[str, Any], model: str, kind: str) -> dict[str, Any]:
    """The fields of a tokenizer of one kind, by names without their common prefix."""
    if gguf_model(fields) != model:
        raise InputError(
            f"{where}: tokenizer.ggml.model is {gguf_model(fields)!r}, expected {model!r} ({kind}); "
            "give a file with such a tokenizer"
        )
    return {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}


def tokens_of(tokens: Sequence[str], types: Sequence[int], wanted: Collection[int]) -> dict[str, int]:
    """The tokens of these types, with their ids."""
    return {token: i for i, token in enumerate(tokens) if types[i] in wanted}


def read_names(given: Mapping[str, Any], tokens: Sequence[str], special_tokens: Collection[str]) -> dict[str, str]:
    """The special token of each role."""
    names: dict[str, str] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        i = given.get(f"{key}_token_id")
        if i is not None and 0 <= i < len(tokens) and tokens[i] in special_tokens:
            names[f"{role}_token"] = tokens[i]
    return names


def read_around(given: Mapping[str, Any], names: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The special tokens before and after a text."""
    sides = (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token"))
    before, after = ([names[role]] if given.get(key) and role in names else [] for key, role in sides)
    return before, after
