"""Small tokenizers of the makes that people publish, by Hugging Face's `tokenizers`; and texts that are hard."""

# ruff: noqa: RUF001

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Any

CORPUS = [
    "the cat sat on the mat, and the dog's bone wasn't where the cat's mat was 1234 times",
    "The Quick Brown Fox jumps over THE lazy dog! don't  stop   believing\n\n\tdef f(x):\n    return x + 1",
    "Привет мир, как дела? Ἑλληνικά straße Straße İstanbul naïve café cafe\u0301 ﬁne ½ ² ①",
    "中文字符 日本語テキスト 한국어 텍스트 ภาษาไทย हिन्दी עברית العربية",
    "emoji 👩‍👧‍👦 🇩🇪 👍🏽 ❤️ end <s> </s> <|x|> [MASK] ▁under _score_ a.b.c http://x.y/z?q=1&r=2",
]

PARTS = [
    *[
        "the",
        " cat",
        "don't",
        "DON'T",
        "ab",
        "a",
        "x1",
        "1234567",
        "٣٤",
        "½",
        "²",
        "Ⅷ",
        "é",
        "e\u0301",
        "ß",
        "ﬁ",
        "İ",
        "ς",
    ],
    *[
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
        "\r",
        "\t",
        "\x0b",
        "\x1c",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
        "\u200b",
        "\ufeff",
    ],
    *[
        "\0",
        "\x01",
        "\x7f",
        "\xad",
        "\u200d",
        "👩\u200d👧",
        "👍🏽",
        "🇩🇪",
        "中",
        "文字",
        "、",
        "。",
        "한국",
        "हिन्दी",
        "ไทย",
        "العربية",
        "עִברית",
    ],
    *[
        "<s>",
        "</s>",
        "<s",
        "<|x|>",
        "<|x",
        "[MASK]",
        "[mask]",
        "<mask>",
        "MASK",
        "<new>",
        "<new><new>",
        "word",
        "wordy",
        "<0x41>",
    ],
    *[
        "▁",
        "_",
        ".",
        ",",
        "!",
        "?",
        "'s",
        "'",
        "-",
        "##a",
        "$",
        "+",
        "^",
        "`",
        "¿",
        "…",
        "―",
        "￿",
        "�",
        "𐍈",
        "A",
        "The",
        "don't",
    ],
]


def drawn_texts(seed: int, number: int) -> list[str]:
    """Texts of parts that are hard, drawn at random, with the parts themselves and the corpus."""
    draw = random.Random(seed)
    made = ["".join(draw.choices(PARTS, k=draw.randint(1, 9))) for _ in range(number)]
    return ["", *PARTS, *CORPUS, *made]


def charsmap() -> str:
    """A small compiled table in SentencePiece's layout: "①" becomes "1", "ﬁ" "fi", a tab a space, U+200B nothing."""
    keys = {"①": "1", "ﬁ": "fi", "\t": " ", "\u200b": "", "\xa0": " ", "Ａ": "A"}
    replacements, places = b"", {}
    for key, value in keys.items():
        places[key.encode()] = len(replacements)
        replacements += value.encode() + b"\0"
    units = [0] * 65536

    def children(key: bytes) -> set[int]:
        return {other[len(key)] for other in places if other.startswith(key) and len(other) > len(key)}

    free = 256

    def put(place: int, label: int, key: bytes) -> None:
        """A unit at `place` whose children stand in a block of 256 of their own."""
        nonlocal free
        base, free = free, free + 256
        offset = place ^ base
        ends = key in places
        # The offset is a multiple of 256 where the low bits are equal: choose the block so.
        base = base | (place & 0xFF)
        offset = place ^ base
        units[place] = (offset >> 8) << 10 | 1 << 9 | (1 << 8 if ends else 0) | label
        if ends:
            units[base] = places[key] | 1 << 31
        for byte in sorted(children(key)):
            put(base ^ byte, byte, key + bytes([byte]))

    put(0, 0, b"")
    trie = b"".join(unit.to_bytes(4, "little") for unit in units[:free])
    return base64.b64encode(len(trie).to_bytes(4, "little") + trie + replacements).decode()


def makers() -> dict[str, Callable[[], Any]]:
    """A tokenizer of each make, as an object of `tokenizers`."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    P, N, D, R = pre_tokenizers, normalizers, decoders, processors
    metaspace_decoder = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def trained(model, trainer, specials=("<s>", "</s>", "<|x|>"), **parts):
        tokenizer = Tokenizer(model)
        for name, part in parts.items():
            if name != "after":
                setattr(tokenizer, name, part)
        tokenizer.train_from_iterator(CORPUS * 3, trainer)
        tokenizer.add_special_tokens(list(specials))
        parts.get("after", lambda _: None)(tokenizer)
        return tokenizer

    def bpe(size=420, alphabet=True, **options):
        letters = P.ByteLevel.alphabet() if alphabet else []
        return trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=letters, **options)

    SPECIALS = ["<s>", "</s>", "<|x|>"]  # of a model that needs one for what is unknown

    def byte_level(*steps, normalizer=None, use_regex=False, model=None, **parts):
        level = P.ByteLevel(add_prefix_space=False, use_regex=use_regex)
        chain = P.Sequence([*steps, level]) if steps else level
        rest = {"normalizer": normalizer} if normalizer else {}
        return trained(
            model or models.BPE(),
            bpe(),
            pre_tokenizer=chain,
            decoder=parts.pop("decoder", D.ByteLevel()),
            **rest,
            **parts,
        )

    def around(tokenizer):
        tokenizer.post_processor = R.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))],
        )

    def roberta(tokenizer):
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
        ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
        tokenizer.post_processor = R.RobertaProcessing(*ends)

    def clip(tokenizer):
        ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
        tokenizer.post_processor = R.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)

    def bert(tokenizer):
        ids = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
        tokenizer.post_processor = R.BertProcessing(*ids)

    def edited(make, edit):
        def made():
            content = json.loads(make().to_str())
            edit(content)
            return Tokenizer.from_str(json.dumps(content))

        return made

    def unigram(specials=("<s>", "</s>", "<mask>"), unk="<unk>", **parts):
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token=unk, show_progress=False)
        parts = {"pre_tokenizer": P.Metaspace(), "decoder": D.Metaspace()} | parts
        return trained(models.Unigram(), trainer, specials, **parts)

    def wordpiece(normalizer, specials=("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), **parts):
        trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=list(specials), show_progress=False)
        parts = {"decoder": D.WordPiece(), "pre_tokenizer": P.BertPreTokenizer(), "after": bert} | parts
        return trained(models.WordPiece(unk_token="[UNK]"), trainer, specials, normalizer=normalizer, **parts)

    def llama(**options):
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        made = trained(
            models.BPE(),
            bpe(300, alphabet=False),
            (),
            normalizer=N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
        )
        content = json.loads(made.to_str())
        merges = content["model"]["merges"]
        vocab = [*pieces, *content["model"]["vocab"]]
        content["model"] |= {
            "vocab": {token: i for i, token in enumerate(vocab)},
            "merges": merges,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
            **options.pop("model", {}),
        }
        content |= options
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.decoder = metaspace_decoder
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in pieces[:3]])
        around(tokenizer)
        return tokenizer

    def gemma():
        tokenizer = llama()
        tokenizer.normalizer = N.Replace(" ", "▁")
        tokenizer.pre_tokenizer = P.Split(" ", "merged_with_previous")
        tokenizer.decoder = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse()])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("\n\n", "▁▁", "the", "\t")])
        return tokenizer

    def word_level(pre_tokenizer, **parts):
        trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False)
        return trained(models.WordLevel(unk_token="[UNK]"), trainer, pre_tokenizer=pre_tokenizer, **parts)

    def many_tokens(tokenizer):
        tokenizer.add_tokens(
            [
                AddedToken("<new>", rstrip=True, normalized=False),
                AddedToken("<new><new>", normalized=False),
                AddedToken("word", single_word=True),
                AddedToken("MASK", lstrip=True, rstrip=True, single_word=True),
                AddedToken("the", normalized=True),
                AddedToken(" cat", normalized=False),
                AddedToken("é"),
                AddedToken("▁under", rstrip=True),
                "AB",
                "x1",
            ]
        )
        tokenizer.add_special_tokens(
            [AddedToken("[MASK]", lstrip=True), AddedToken("<mask>", rstrip=True, normalized=True)]
        )

    deepseek = P.Sequence(
        [
            P.Split(Regex("[\r\n]"), "isolated"),
            P.Split(Regex(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳ]+"), "isolated"),
            P.Split(Regex(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), "isolated"),
            P.Split(Regex(r"\s+$"), "isolated"),
            P.Split(Regex("[一-龥ࠀ-一가-퟿]+"), "isolated"),
            P.Digits(individual_digits=True),
            P.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    falcon = P.Sequence(
        [
            P.Punctuation("contiguous"),
            P.ByteLevel(add_prefix_space=False),
            P.Digits(False),
            P.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    clip_split = P.Sequence(
        [
            P.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            P.ByteLevel(add_prefix_space=False),
        ]
    )
    clip_normalizer = N.Sequence([N.NFC(), N.Replace(Regex(r"\s+"), " "), N.Lowercase()])

    def gaps(content):
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {token: i if i < 50 else i + 7 for token, i in vocab.items()}
        shift = {i: i if i < 50 else i + 7 for i in range(10_000)}
        for token in content["added_tokens"]:
            token["id"] = shift[token["id"]]

    def shorten(content):
        for byte in "ĀāĂ":
            content["model"]["vocab"].pop(byte, None)
        content["model"]["unk_token"] = "<s>"
        content["model"]["vocab"]["<s>"] = 5000

    def limits(content):
        content["truncation"] = {"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            **{"strategy": {"Fixed": 0}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        }

    def ignore_merges(content):
        content["model"]["ignore_merges"] = True

    return {
        "gpt2": lambda: byte_level(use_regex=True),
        "gpt2 with limits": edited(lambda: byte_level(use_regex=True), limits),
        "roberta": lambda: trained(
            models.BPE(), bpe(), pre_tokenizer=P.ByteLevel(add_prefix_space=True), decoder=D.ByteLevel(), after=roberta
        ),
        "llama3": edited(lambda: byte_level(P.Split(Regex(llama3), "isolated"), after=around), ignore_merges),
        "qwen2": lambda: byte_level(P.Split(Regex(llama3.replace("{1,3}", "")), "isolated"), normalizer=N.NFC()),
        "nfkc": lambda: byte_level(normalizer=N.NFKC(), use_regex=True),
        "deepseek": lambda: trained(models.BPE(), bpe(), pre_tokenizer=deepseek, decoder=D.ByteLevel()),
        "falcon": lambda: trained(models.BPE(), bpe(), pre_tokenizer=falcon, decoder=D.ByteLevel()),
        "starcoder": lambda: byte_level(P.Digits(individual_digits=True), use_regex=True),
        "bloom": lambda: byte_level(P.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated")),
        "whitespace bpe": lambda: trained(
            models.BPE(unk_token="<s>"), bpe(200, alphabet=False, special_tokens=SPECIALS), pre_tokenizer=P.Whitespace()
        ),
        "missing bytes": edited(lambda: byte_level(use_regex=True), shorten),
        "gaps": edited(lambda: byte_level(use_regex=True), gaps),
        "many tokens": lambda: byte_level(use_regex=True, normalizer=N.Lowercase(), after=many_tokens),
        "many tokens, plain": lambda: byte_level(use_regex=True, after=many_tokens),
        "clip": lambda: trained(
            models.BPE(unk_token="<|x|>", end_of_word_suffix="</w>"),
            bpe(600, special_tokens=SPECIALS, end_of_word_suffix="</w>"),
            normalizer=clip_normalizer,
            pre_tokenizer=clip_split,
            decoder=D.ByteLevel(),
            after=clip,
        ),
        "ctrl": lambda: trained(
            models.BPE(unk_token="<s>", fuse_unk=True, end_of_word_suffix="</w>"),
            bpe(200, alphabet=False, special_tokens=SPECIALS, end_of_word_suffix="</w>"),
            normalizer=N.BertNormalizer(),
            pre_tokenizer=P.WhitespaceSplit(),
            decoder=D.BPEDecoder(),
        ),
        "prefixed bpe": lambda: trained(
            models.BPE(unk_token="<s>", continuing_subword_prefix="##"),
            bpe(200, alphabet=False, special_tokens=SPECIALS, continuing_subword_prefix="##"),
            pre_tokenizer=P.Punctuation("removed"),
            decoder=D.WordPiece(cleanup=False),
        ),
        "llama2": lambda: llama(),
        "llama2 legacy": lambda: llama(
            normalizer=None,
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        ),
        "gemma": gemma,
        "metaspace bpe": lambda: trained(
            models.BPE(unk_token="<s>"),
            bpe(200, alphabet=False, special_tokens=SPECIALS),
            pre_tokenizer=P.Metaspace(),
            decoder=D.Metaspace(),
        ),
        "t5": lambda: unigram(
            normalizer=N.Sequence(
                [N.Precompiled(base64.b64decode(charsmap())), N.Strip(False, True), N.Replace(Regex(" {2,}"), "▁")]
            ),
            after=around,
        ),
        "albert": lambda: unigram(
            normalizer=N.Sequence([N.Replace("``", '"'), N.NFKD(), N.StripAccents(), N.Lowercase()]), after=around
        ),
        "xlm-r": lambda: unigram(
            normalizer=N.Precompiled(base64.b64decode(charsmap())),
            pre_tokenizer=P.Sequence([P.WhitespaceSplit(), P.Metaspace()]),
            after=around,
        ),
        "nmt unigram": lambda: unigram(
            normalizer=N.Sequence([N.Nmt(), N.NFKC(), N.Replace(Regex(" {2,}"), " ")]),
            pre_tokenizer=P.Metaspace(prepend_scheme="first"),
            decoder=D.Metaspace(prepend_scheme="first"),
            after=many_tokens,
        ),
        "bert": lambda: wordpiece(N.BertNormalizer()),
        "bert cased": lambda: wordpiece(N.BertNormalizer(lowercase=False)),
        "mpnet": lambda: wordpiece(N.BertNormalizer(), after=many_tokens),
        "electra": lambda: wordpiece(N.Sequence([N.NFKC(), N.BertNormalizer()]), decoder=D.WordPiece(cleanup=False)),
        "words": lambda: word_level(P.Whitespace()),
        "words, removed": lambda: word_level(
            P.Sequence(
                [
                    P.CharDelimiterSplit("t"),
                    P.Split(Regex(r"\d+"), "merged_with_next"),
                    P.Split("e", "merged_with_previous"),
                    P.FixedLength(4),
                ]
            ),
            after=many_tokens,
        ),
        "words, first": lambda: word_level(
            P.Sequence(
                [P.Metaspace(prepend_scheme="first"), P.WhitespaceSplit(), P.Split(Regex("[aeiou]"), "contiguous")]
            ),
            normalizer=N.Sequence([N.NFKC(), N.Strip(), N.StripAccents(), N.Replace("x", "")]),
            decoder=D.CTC("<s>", "|"),
        ),
    }
