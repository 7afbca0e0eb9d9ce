"""The text of a language that a training needs: tokens to bytes, words, pages, and pages before they were cleaned.

**Tokens a byte** are those of XLM-RoBERTa's tokenizer on FLORES-200, the same 2,000 sentences in 200 languages
(Petrov et al. 2023, arXiv:2305.15425; in their repository tokenization-fairness, the file assets/
tokenization_lengths_validated.csv: the lengths for XLM-RoBERTa over those for ByT5, which are bytes). It was trained on
100 languages, so it stands in for a tokenizer that was trained for the language; a tokenizer made for English takes far
more tokens. `measured` takes the rates of a given tokenizer and text instead.

**Bytes, words and pages** are those of the language in FineWeb 2, web text of 96 Common Crawl snapshots, cleaned
(Penedo et al. 2025, arXiv:2506.20920; fineweb2-language-distribution.csv in its repository). Words are counted with a
word splitter for each language, so punctuation counts, and Chinese and Japanese have words. English is that of FineWeb
(Penedo et al. 2024, arXiv:2406.17557): 15 trillion GPT-2 tokens, 672 a page by its sample of 10 billion, 4.93 bytes a
token (FLORES-200), three quarters of a word each.

**Cleaning.** The share of pages that the filters left is that of the same table (`removed`); before them, removing
duplicates had left 20 of 36 trillion tokens of FineWeb, which is taken for every language. So the pages to begin with
are those in the language whose text could be extracted. A page of a crawl has 149 kB of HTML (Common Crawl, December
2024: 2.64 billion pages, 394 TiB).

**Repeating.** Where a language has less text than is needed, it can be seen again: up to 4 times is nearly as good as
new text, and 16 times still helps a little (Muennighoff et al. 2023, arXiv:2305.16264).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers import Tokenizer

UNIQUE = 20 / 36  # share of the text that removing duplicates leaves
PAGE_OF_HTML = 394 * 2**40 / 2.64e9  # bytes


class Language(NamedTuple):
    """A language in FineWeb 2: what it has there, and tokens and bytes of the sentences of FLORES-200."""

    name: str
    words: float
    pages: float
    bytes: float
    removed: float  # pages that filters removed
    tokens: float
    bytes_of_tokens: float


LANGUAGES = {
    "ar": Language("Arabic", 32812858120, 61977525, 315241517028, 75714620, 70160, 413881),
    "cy": Language("Welsh", 523226616, 831878, 2680853098, 1327628, 85327, 277959),
    "da": Language("Danish", 28055948840, 45391655, 161837584891, 77463538, 65265, 272408),
    "de": Language("German", 262271052199, 495964485, 1654784757688, 251288231, 69727, 307304),
    "en": Language("English", 0.75 * 15e12, 15e12 / 672, 15e12 * 259396 / 52567, 15e12 / 672 / 3, 59656, 259396),
    "es": Language("Spanish", 261523749595, 441287261, 1447166708770, 431159798, 71459, 314077),
    "fa": Language("Persian", 39705799658, 58843652, 327079306116, 61063495, 65918, 440163),
    "fi": Language("Finnish", 20343096672, 36710816, 153578789445, 59179814, 67990, 287021),
    "fr": Language("French", 220662584640, 360058973, 1220202265605, 363004462, 77352, 320613),
    "he": Language("Hebrew", 8462976117, 14491748, 73780962340, 32491691, 67112, 359555),
    "hi": Language("Hindi", 11173681651, 22095985, 129902413849, 9927650, 74861, 661374),
    "hr": Language("Croatian", 6609299440, 6195824, 38555062999, 16193327, 65682, 262354),
    "hu": Language("Hungarian", 30919839164, 49935986, 214420647030, 62629587, 70308, 299608),
    "id": Language("Indonesian", 60264322142, 100238529, 374364271538, 92263903, 56004, 281022),
    "is": Language("Icelandic", 1696354360, 3014429, 11028092809, 3676854, 73561, 282751),
    "it": Language("Italian", 139116026491, 238984437, 793750885035, 177205688, 70965, 307457),
    "ja": Language("Japanese", 331144301801, 400138563, 1650248456871, 665970978, 66414, 329167),
    "ko": Language("Korean", 48613120582, 60874355, 229164863492, 110550664, 69124, 310727),
    "nl": Language("Dutch", 74634633118, 147301270, 426818652448, 218945327, 68075, 289068),
    "no": Language("Norwegian", 32008904934, 38144343, 184736905731, 36686953, 63780, 266748),
    "pl": Language("Polish", 73119437217, 151966724, 463862082709, 222490734, 70891, 292098),
    "pt": Language("Portuguese", 109536087117, 199737979, 611213407211, 285961147, 66406, 289511),
    "ro": Language("Romanian", 35017893659, 58303671, 199920561455, 53772396, 74034, 307925),
    "ru": Language("Russian", 588579493780, 699083579, 6400108560340, 1072502721, 70031, 514650),
    "sv": Language("Swedish", 35745969364, 59485306, 217929329252, 108352247, 63927, 271024),
    "sw": Language("Swahili", 569542024, 1206300, 3311669706, 2395524, 69335, 272166),
    "tr": Language("Turkish", 41933799420, 95129129, 305497429770, 101406881, 61972, 289924),
    "uk": Language("Ukrainian", 25586457655, 53101726, 273654962631, 51960229, 71931, 483479),
    "ur": Language("Urdu", 2733266493, 4809542, 21400072163, 2260942, 73620, 455529),
    "vi": Language("Vietnamese", 50886874358, 61064248, 343416915256, 118837456, 70314, 360436),
    "zh": Language("Chinese", 543543038750, 636058984, 2665362545414, 632494890, 57887, 240075),
}


def language_code(text: str) -> str:
    """The code of a language that is given by its code, `de`, or by its English name.

    Raises: InputError for a language that is not in the table.
    """
    names = {language.name.lower(): code for code, language in LANGUAGES.items()}
    code = names.get(text.lower(), text.lower())
    if code not in LANGUAGES:
        raise InputError(
            f"plan: --language is {text!r}{did_you_mean(code, [*names, *LANGUAGES])}; or give the most similar one, "
            "and --text FILE and --tokenizer FOLDER of yours"
        )
    return code


class Rates(NamedTuple):
    """The tokens and words for each byte of a text that a tokenizer cuts."""

    tokens_a_byte: float
    words_a_byte: float
    source: str


def rates_of(language: Language) -> Rates:
    """The rates of the table."""
    return Rates(
        language.tokens / language.bytes_of_tokens,
        language.words / language.bytes,
        "XLM-RoBERTa's tokenizer on FLORES-200 (Petrov et al. 2023); words of FineWeb 2 (of FineWeb for English)",
    )


def measured(tokenizer: Path, text: Path) -> Rates:
    """The rates of a saved tokenizer on a text; words are what white space parts.

    Raises: InputError for a text that is missing, empty or not UTF-8; what loading a tokenizer raises.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"plan: --text {text} cannot be read as UTF-8 text ({error}); give another file") from None
    if not content.strip():
        raise InputError(f"plan: --text {text} has no words; give a text of the language")
    size = len(content.encode())
    tokens = len(Tokenizer.load(tokenizer).encode(content))
    return Rates(tokens / size, len(content.split()) / size, f"{tokenizer} on {text}, measured ({size:,} bytes)")


class Need(NamedTuple):
    """The text to collect."""

    tokens: float
    bytes: float
    words: float
    pages: float  # clean ones
    unfiltered: float  # pages before quality filters
    crawled: float  # pages before duplicates were removed
    html: float  # bytes of the crawled pages
    kept: float  # share of the crawled pages that is left at the end
    available: float  # tokens of the language in FineWeb 2
    rates: Rates

    @property
    def repeats(self) -> float:
        """The number of times that the available text has to be seen; 1 at least."""
        return max(1.0, self.tokens / self.available)


def need(tokens: float, language: Language, rates: Rates, kept: float | None = None) -> Need:
    """The text for so many tokens; `kept` replaces the share of crawled pages that cleaning leaves."""
    size = tokens / rates.tokens_a_byte
    pages = size * language.pages / language.bytes
    filtered = language.pages / (language.pages + language.removed)
    share = filtered * UNIQUE if kept is None else kept
    unfiltered = pages / filtered if kept is None else pages / kept
    crawled = pages / share
    return Need(
        tokens,
        size,
        size * rates.words_a_byte,
        pages,
        unfiltered,
        crawled,
        crawled * PAGE_OF_HTML,
        share,
        language.bytes * rates.tokens_a_byte,
        rates,
    )
