"""Counts of documents for the data card: each is read once, and the memory does not grow with their number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from minillm.corpus.document import Document
from minillm.corpus.report.people import groups_named_in
from minillm.corpus.report.readability import reading_ease
from minillm.corpus.report.tallies import Followed, Sample, SampledGroups, Tally, rank, rounded, short_name
from minillm.errors import InputError
from minillm.tokenizers import Tokenizer

NAMES = 1000  # sources, languages and rules that have counts of their own, each; more of them are counted together
FOLLOWED = 100_000  # domains and clusters that are counted one by one
OTHERS, UNNAMED = "(others)", "(unnamed)"
RULE_SAMPLES, KEPT_SAMPLES, CLUSTER_SAMPLES = 5, 6, 8
EXCERPT = 600  # characters of a sample that are shown
FIRST_WORDS = 120  # characters of a cluster that are shown in a table
EASIEST, HARDEST = 140, -100  # scores beyond are counted as these
EDITS = (  # keys of info
    "lines_removed",
    "masked",
    "removed_lines",
    "removed_paragraphs",
    "removed_characters",
    "cut_characters",
)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Settings:
    """The settings that the counts depend on, beside the documents."""

    tokenizer: Path | None = None
    """Folder of the tokenizer; None where there is none, and tokens are not counted."""
    seed: int = 0
    """Seed of the samples."""


@dataclass
class Counts:
    """Counts of a stream of documents."""

    settings: Settings
    sizes: dict[tuple[str, str, bool], Counter] = field(default_factory=dict)  # by kind, name, and kept or not
    lengths: dict[bool, Counter] = field(default_factory=lambda: {True: Counter(), False: Counter()})  # words, rounded
    vocabulary: np.ndarray | None = None  # (V,), how often each token occurs in the kept documents
    ease: dict[tuple[str, str], Counter] = field(default_factory=dict)  # scores by language and source
    domains: Tally = field(default_factory=lambda: Tally(FOLLOWED))
    licences: Tally = field(default_factory=lambda: Tally(1000))
    reasons: dict[str, Tally] = field(default_factory=dict)  # by rule, with the numbers taken out
    samples: dict[str, Sample] = field(default_factory=dict)  # by rule; "" has the kept documents
    edits: Counter = field(default_factory=Counter)  # (edit, what of it, "documents" or "times"), of kept documents
    named: Counter = field(default_factory=Counter)  # (source, group, term): occurrences in kept documents
    naming: Counter = field(default_factory=Counter)  # (group, rule): documents, "" for the kept ones
    clusters: Counter = field(default_factory=Counter)  # "clusters", "documents"
    cluster_sizes: Followed = field(default_factory=lambda: Followed(FOLLOWED))
    largest: Tally = field(default_factory=lambda: Tally(FOLLOWED))
    first_words: dict[str, str] = field(default_factory=dict)  # by cluster, of those in `largest`
    pairs: SampledGroups = field(default_factory=lambda: SampledGroups(CLUSTER_SAMPLES))

    def add(self, document: Document) -> None:
        """Count a document."""
        kept, text = not document.dropped, document.text
        rule = "" if kept else self._name("rule", document.rule or UNNAMED)
        source, language = self._name("source", document.source), self._name("language", document.language or "")
        size = size_of(text)
        if kept:
            self._count_tokens(text, size)
            self._count_kept(document, source, language)
        for kind, name in ("all", ""), ("source", source), ("language", language), ("rule", rule):
            self.sizes.setdefault((kind, name, kept), Counter()).update(size)
        self.lengths[kept][rounded(size["words"])] += 1
        self._count_people(text, source, rule)
        order = rank(document.id, self.settings.seed)
        if not kept:
            self.reasons.setdefault(rule, Tally(100)).add(reason_of(document))
        sample = self.samples.setdefault(rule, Sample(KEPT_SAMPLES if kept else RULE_SAMPLES))
        sample.offer(order, lambda: excerpt_of(document))
        if isinstance(cluster := document.info.get("cluster"), str):
            self._count_cluster(document, cluster)

    def _name(self, kind: str, name: str) -> str:
        """The name under which a source, a language or a rule is counted."""
        name = short_name(name)
        known = (kind, name, True) in self.sizes or (kind, name, False) in self.sizes
        return name if known or sum(one[0] == kind for one in self.sizes) < NAMES else OTHERS

    def _count_tokens(self, text: str, size: Counter) -> None:
        if self.settings.tokenizer is None:
            return
        tokenizer = tokenizer_in(self.settings.tokenizer)
        if self.vocabulary is None:
            self.vocabulary = np.zeros(tokenizer.vocab_size, np.int64)
        try:
            ids = np.array(tokenizer.encode(text), np.int64)
        except InputError:  # a tokenizer of characters has no token for every text
            size["unencodable"] = 1
            return
        self.vocabulary += np.bincount(ids, minlength=tokenizer.vocab_size)
        size["tokens"] = len(ids)
        size["encoded_words"] = size["words"]
        size["encoded_bytes"] = size["bytes"]
        size["unknown"] = 0 if tokenizer.unk_id is None else int((ids == tokenizer.unk_id).sum())

    def _count_kept(self, document: Document, source: str, language: str) -> None:
        self.domains.add(domain_of(document.info.get("url")))
        self.licences.add(short_name(str(document.info.get("licence") or "")))
        for edit, what, times in edits_of(document.info):
            self._count_edit(edit, what, documents=1, times=times)
        if (score := reading_ease(document.text, document.language)) is not None:
            score = min(max(round(score), HARDEST), EASIEST)
            self.ease.setdefault((language, source), Counter())[score] += 1

    def _count_edit(self, edit: str, what: str, documents: int, times: int) -> None:
        if (edit, what, "times") not in self.edits and len(self.edits) >= 2 * NAMES:
            what = OTHERS
        self.edits[edit, what, "documents"] += documents
        self.edits[edit, what, "times"] += times

    def _count_people(self, text: str, source: str, rule: str) -> None:
        found = groups_named_in(text)
        for group, term in found:
            if not rule:
                self.named[source, group, term] += found[group, term]
        for group in {group for group, _ in found}:
            self.naming[group, rule] += 1

    def _count_cluster(self, document: Document, cluster: str) -> None:
        name, order = short_name(cluster), rank(cluster, self.settings.seed)
        self.clusters["documents"] += 1
        self.cluster_sizes.add(order)
        self.largest.add(name)
        if document.id == cluster:
            self.clusters["clusters"] += 1
            self.first_words[name] = " ".join(document.text[: 2 * FIRST_WORDS].split())[:FIRST_WORDS]
        self.pairs.offer(order, lambda: excerpt_of(document))

    def merge(self, other: Counts) -> None:
        """Count the documents of `other` too; they follow those of this one."""
        for (kind, name, kept), size in other.sizes.items():
            self.sizes.setdefault((kind, self._name(kind, name), kept), Counter()).update(size)
        for state, lengths in other.lengths.items():
            self.lengths[state].update(lengths)
        for (language, source), scores in other.ease.items():
            place = self._name("language", language), self._name("source", source)
            self.ease.setdefault(place, Counter()).update(scores)
        for rule, reasons in other.reasons.items():
            self.reasons.setdefault(self._name("rule", rule), Tally(reasons.limit)).merge(reasons)
        for rule, sample in other.samples.items():
            self.samples.setdefault(self._name("rule", rule), Sample(sample.size)).merge(sample)
        for edit, what, unit in other.edits:
            if unit == "times":
                number = {name: other.edits[edit, what, name] for name in ("documents", "times")}
                self._count_edit(edit, what, **number)
        for (source, group, term), times in other.named.items():
            self.named[self._name("source", source), group, term] += times
        for (group, rule), documents in other.naming.items():
            self.naming[group, self._name("rule", rule)] += documents
        self.clusters.update(other.clusters)
        self.domains.merge(other.domains)
        self.licences.merge(other.licences)
        self.cluster_sizes.merge(other.cluster_sizes)
        self.largest.merge(other.largest)
        self.pairs.merge(other.pairs)
        self.first_words |= other.first_words
        if len(self.first_words) > len(self.largest.counts):  # some of their clusters have left the tally
            self.first_words = {name: self.first_words[name] for name in self.largest.counts.keys() & self.first_words}
        if other.vocabulary is not None:
            self.vocabulary = other.vocabulary + (0 if self.vocabulary is None else self.vocabulary)


@dataclass(frozen=True)
class CountChunk:
    """The function that worker processes run: documents in, their counts out."""

    settings: Settings

    def __call__(self, documents: list[Document]) -> Counts:
        counts = Counts(self.settings)
        for document in documents:
            counts.add(document)
        return counts


def size_of(text: str) -> Counter:
    """The size of a text: 1 document, its characters, words and bytes. White space divides words."""
    content = text.encode("utf-8", "surrogatepass")
    return Counter(documents=1, characters=len(text), words=len(text.split()), bytes=len(content))


def sizes_of(documents: list[Document]) -> Counter:
    """The size of documents together."""
    total: Counter = Counter()
    for document in documents:
        total.update(size_of(document.text))
    return total


@cache
def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, read once in a process."""
    return Tokenizer.from_file(folder)


def excerpt_of(document: Document) -> dict[str, Any]:
    """The beginning of a document, with what names it, and why it was dropped."""
    text, url = document.text[:EXCERPT], document.info.get("url")
    return {
        "id": short_name(document.id),
        "source": short_name(document.source),
        "url": short_name(url) if isinstance(url, str) else None,
        "why": document.dropped and document.dropped[:EXCERPT],
        "text": text,
        "characters_left_out": len(document.text) - len(text),
    }


def reason_of(document: Document) -> str:
    """The reason that dropped a document, without what is particular to it: "# words, under #"."""
    reason = (document.dropped or "").partition(":")[2]
    for name in ("duplicate_of", "cluster"):
        if isinstance(other := document.info.get(name), str) and other:
            reason = reason.replace(other, "another document")
    return short_name(NUMBER.sub("#", reason).strip())


def edits_of(info: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """The changes that the stages noted in the info of a document: the edit, what was edited, and how often."""
    for edit in EDITS:
        found = info.get(edit)
        for what, times in found.items() if isinstance(found, dict) else [("", found)]:
            if isinstance(times, int):
                yield edit, short_name(str(what)), times


def domain_of(url: Any) -> str:
    """The domain of an address, without "www."; "" for one that names none, such as javascript:alert(1)."""
    try:
        host = urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:  # such as http://[
        host = None
    return short_name((host or "").removeprefix("www."))
