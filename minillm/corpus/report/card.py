"""The data card: a JSON object made of the counts of a corpus and of what lies in its folder.

Its parts are named after the sections of Datasheets for Datasets (Gebru et al. 2021, arXiv 1803.09010) where they fit:
`composition`, `collection`, `preprocessing`, `limits`. A key means one thing wherever it stands, and `definitions` says
what, for every key there is (see definitions.py). Names that come from data, such as those of sources, are values and
never keys. The card has no date, so the same corpus gives the same bytes.
"""

from __future__ import annotations

import platform
import unicodedata
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from minillm.corpus.report.counts import Counts, tokenizer_in
from minillm.corpus.report.definitions import BYTES_A_TOKEN, DEFINITIONS, LIMITS
from minillm.corpus.report.folder import CorpusFolder
from minillm.corpus.report.people import names_of_groups
from minillm.corpus.report.tallies import Tally, quantile
from minillm.version import __version__

FORMAT, VERSION = "minillm data card", 1
LENGTHS = (
    0,
    1,
    10,
    20,
    50,
    100,
    200,
    500,
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
    100_000,
)  # words; the last is open
CLUSTER_SIZES = (2, 3, 4, 5, 6, 11, 21, 51, 101, 1001)
SCORES = tuple(range(-20, 121, 10))
TOP = 30  # domains, licences, clusters and reasons that are listed, each
SELDOM = 100


def make_card(counts: Counts, folder: CorpusFolder, splits: dict[str, Counter]) -> dict[str, Any]:
    """The data card of a corpus.

    counts: of all documents of the last stage. splits: the sizes of the files to train and validate on, by their name.
    """
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "title": folder.path.resolve().name,
        "made_with": {
            "minillm": __version__,
            "python": platform.python_version(),
            "unicode": unicodedata.unidata_version,
            "seed": counts.settings.seed,
        },
        "composition": composition(counts, folder, splits),
        "collection": collection(counts),
        "preprocessing": {
            "stages": folder.stages,
            "rules": rules(counts),
            "edits": edits(counts),
            "duplicates": duplicates(counts),
        },
        "vocabulary": vocabulary(counts, folder),
        "readability": readability(counts),
        "people": people(counts),
        "files": folder.checksums(),
        "limits": LIMITS,
        "definitions": DEFINITIONS,
    }


def composition(counts: Counts, folder: CorpusFolder, splits: dict[str, Counter]) -> dict[str, Any]:
    """The part on sizes, sources, languages, lengths, licences and splits, with samples."""
    read, kept = state_of(counts, "all", "")
    return {
        "documents_read": read["documents"],
        "kept": size(kept, counts),
        "dropped": size(read - kept, counts, tokens=False),
        "tokens_how": "counted" if counts.vocabulary is not None else "estimated",
        "sources": rows(counts, "source"),
        "languages": rows(counts, "language"),
        "lengths": lengths(counts),
        "licences": top(counts.licences, "licence"),
        "splits": [
            {"split": name, **size(one, counts, tokens=False), "tokens": folder.tokens(name)}
            for name, one in splits.items()
        ],
        "samples": counts.samples[""].chosen() if "" in counts.samples else [],
    }


def state_of(counts: Counts, kind: str, name: str) -> tuple[Counter, Counter]:
    """The sizes of what was read, and of what was kept of it."""
    kept = counts.sizes.get((kind, name, True), Counter())
    return kept + counts.sizes.get((kind, name, False), Counter()), kept


def size(sizes: Counter, counts: Counts, tokens: bool = True) -> dict[str, Any]:
    """Documents, characters, words, bytes, and tokens where they are asked for."""
    found = {name: sizes[name] for name in ("documents", "characters", "words", "bytes")}
    if tokens:
        counted = counts.vocabulary is not None
        found["tokens"] = sizes["tokens"] if counted else round(sizes["bytes"] / BYTES_A_TOKEN)
    return found


def rows(counts: Counts, kind: str) -> list[dict[str, Any]]:
    """A row for each source or language, the one with most kept words first."""
    names = {name for one, name, _ in counts.sizes if one == kind}
    found = []
    for name in names:
        read, kept = state_of(counts, kind, name)
        found.append(
            {
                kind: name,
                "documents_read": read["documents"],
                **size(kept, counts),
                "share_kept": share(kept["documents"], read["documents"]),
                "words_a_document": share(kept["words"], kept["documents"]),
                **tokens_of(kept),
            }
        )
    return sorted(found, key=lambda row: (-row["words"], -row["documents_read"], row[kind]))


def tokens_of(sizes: Counter) -> dict[str, Any]:
    """The numbers on how the tokenizer cuts a text; None where there is no tokenizer."""
    return {
        "tokens_a_word": share(sizes["tokens"], sizes["encoded_words"]),
        "bytes_a_token": share(sizes["encoded_bytes"], sizes["tokens"]),
        "unknown_share": share(sizes["unknown"], sizes["tokens"]),
        "unencodable": sizes["unencodable"],
    }


def share(part: float, whole: float) -> float | None:
    """The quotient, to six digits; None where there is nothing to divide by."""
    return float(f"{part / whole:.6g}") if whole else None


def lengths(counts: Counts) -> dict[str, Any]:
    """The lengths of documents in words."""
    kept, dropped = counts.lengths[True], counts.lengths[False]
    bins = zip(binned(kept, LENGTHS), binned(dropped, LENGTHS), strict=True)
    return {
        **quartiles(kept),
        "bins": [{**one, "dropped_documents": other["documents"]} for one, other in bins],
    }


def binned(values: Counter, edges: tuple[int, ...], what: str = "documents") -> list[dict[str, Any]]:
    """A histogram; the last bin is open, and what lies below the first is counted in it."""
    found: list[dict[str, Any]] = [{"from": low, "to": high, what: 0} for low, high in pairwise((*edges, None))]
    for value, times in values.items():
        found[sum(value >= edge for edge in edges[1:])][what] += times
    return found


def quartiles(values: Counter) -> dict[str, Any]:
    """The quartiles of counted values."""
    shares = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
    return {name: quantile(values, one) for name, one in shares.items()}


def top(tally: Tally, name: str) -> dict[str, Any]:
    """The most frequent names of a tally, and how many documents have none."""
    named = [(one, times) for one, times in tally.top(len(tally.counts)) if one]
    return {
        "top": [{name: one, "documents": times} for one, times in named[:TOP]],
        "different": None if tally.lowered else len(named),
        "without": tally.counts[""],
        "too_low_by": tally.lowered,
    }


def collection(counts: Counts) -> dict[str, Any]:
    """The part on the origin of the kept documents."""
    return {"domains": top(counts.domains, "domain")}


def rules(counts: Counts) -> list[dict[str, Any]]:
    """A row for each rule that dropped documents, the one that dropped most first."""
    read, _ = state_of(counts, "all", "")
    names = {name for kind, name, kept in counts.sizes if kind == "rule" and not kept}
    found = []
    for name in names:
        dropped = counts.sizes["rule", name, False]
        reasons = counts.reasons[name]
        found.append(
            {
                "rule": name,
                **size(dropped, counts, tokens=False),
                "share_of_documents": share(dropped["documents"], read["documents"]),
                "share_of_characters": share(dropped["characters"], read["characters"]),
                "reasons": [{"reason": one, "documents": times} for one, times in reasons.top(TOP) if one],
                "samples": counts.samples[name].chosen(),
            }
        )
    return sorted(found, key=lambda row: (-row["documents"], row["rule"]))


def edits(counts: Counts) -> list[dict[str, Any]]:
    """A row for each change that the stages made in the kept documents."""
    found = [
        {"edit": edit, "what": what, "documents": counts.edits[edit, what, "documents"], "times": times}
        for (edit, what, unit), times in counts.edits.items()
        if unit == "times"
    ]
    return sorted(found, key=lambda row: (row["edit"], -row["times"], row["what"]))


def duplicates(counts: Counts) -> dict[str, Any]:
    """The clusters of documents that are equal, or nearly so."""
    followed = counts.cluster_sizes
    return {
        "clusters": counts.clusters["clusters"],
        "documents_in_clusters": counts.clusters["documents"],
        "share_followed": followed.share,
        "sizes": binned(Counter(followed.counts.values()), CLUSTER_SIZES, "clusters"),
        "largest": [
            {"cluster": name, "documents": times, "first_words": counts.first_words.get(name, "")}
            for name, times in counts.largest.top(TOP)
        ],
        "too_low_by": counts.largest.lowered,
        "examples": [{"members": members} for members in counts.pairs.chosen() if len(members) > 1],
    }


def vocabulary(counts: Counts, folder: CorpusFolder) -> dict[str, Any] | None:
    """The part on how well the tokens fit the kept text; None where there is no tokenizer."""
    if counts.settings.tokenizer is None:
        return None
    tokenizer = tokenizer_in(counts.settings.tokenizer)
    seen = np.zeros(tokenizer.vocab_size, np.int64) if counts.vocabulary is None else counts.vocabulary
    _, kept = state_of(counts, "all", "")
    return {
        "tokenizer": tokenizer.kind,
        "fingerprint": tokenizer.fingerprint(),
        "vocab_size": tokenizer.vocab_size,
        "used": int((seen > 0).sum()),
        "share_used": share(int((seen > 0).sum()), tokenizer.vocab_size),
        "seldom": int(((seen > 0) & (seen < SELDOM)).sum()),
        "tokens": kept["tokens"],
        **tokens_of(kept),
    }


def readability(counts: Counts) -> dict[str, Any]:
    """The part on reading ease, for the languages that have a formula."""
    languages: dict[str, Counter] = {}
    for (language, _), scores in counts.ease.items():
        languages.setdefault(language, Counter()).update(scores)
    places = sorted(counts.ease, key=lambda place: (-counts.ease[place].total(), place))
    return {
        "languages": [
            {"language": language, **scored(scores), **quartiles(scores), "bins": binned(scores, SCORES)}
            for language, scores in sorted(languages.items())
        ],
        "sources": [
            {"source": source, "language": language, **scored(counts.ease[language, source])}
            for language, source in places[:TOP]
        ],
    }


def scored(scores: Counter) -> dict[str, Any]:
    """The number of documents with a score, and the mean of the scores."""
    return {
        "documents": scores.total(),
        "mean": share(sum(score * times for score, times in scores.items()), scores.total()),
    }


def people(counts: Counts) -> dict[str, Any]:
    """The part on words for groups of people, by source, and on the documents with such words that were dropped."""
    read, kept = state_of(counts, "all", "")
    times: Counter = Counter()
    for (source, group, _), number in counts.named.items():
        times[source, group] += number
    return {
        "share_dropped": share(read["documents"] - kept["documents"], read["documents"]),
        "groups": [group_row(counts, group, kept["words"]) for group in names_of_groups()],
        "sources": [
            {
                "source": row["source"],
                "group": group,
                "occurrences": times[row["source"], group],
                "per_million": share(1e6 * times[row["source"], group], row["words"]),
            }
            for row in rows(counts, "source")[:TOP]
            for group in names_of_groups()
        ],
    }


def group_row(counts: Counts, group: str, words: int) -> dict[str, Any]:
    """The words for a group in the kept documents, and what became of the documents with such words."""
    terms: Counter = Counter()
    for (_, one, term), times in counts.named.items():
        if one == group:
            terms[term] += times
    dropped = {rule: documents for (one, rule), documents in counts.naming.items() if one == group and rule}
    total = sum(dropped.values())
    return {
        "group": group,
        "occurrences": terms.total(),
        "per_million": share(1e6 * terms.total(), words),
        "documents": counts.naming[group, ""],
        "dropped_documents": total,
        "share_dropped": share(total, total + counts.naming[group, ""]),
        "dropped_by": [
            {"rule": rule, "documents": documents}
            for rule, documents in sorted(dropped.items(), key=lambda item: (-item[1], item[0]))[:TOP]
        ],
        "terms": [
            {"term": term, "occurrences": times}
            for term, times in sorted(terms.items(), key=lambda item: (-item[1], item[0]))
        ],
    }
