"""Definitions of all keys of the data card, and its limits. The page shows both beside the numbers."""

from __future__ import annotations

BYTES_A_TOKEN = 4  # about what a tokenizer of 30,000 to 50,000 tokens reaches on English; for the estimate alone

DEFINITIONS = {
    "format": "The kind of this file.",
    "format_version": "A higher version may have other keys.",
    "title": "The name of the corpus' folder.",
    "made_with": "The versions of the programs that counted, and the seed of the samples.",
    "minillm": "The version of minillm.",
    "python": "The version of Python.",
    "unicode": "The version of Unicode that decides what is a letter or white space.",
    "seed": "The seed by which samples are chosen: those whose names have the smallest hashes with it.",
    # how much
    "composition": "What the corpus consists of.",
    "documents_read": "Documents that the last stage wrote, the dropped ones among them.",
    "kept": "What no rule dropped; this is what is trained on.",
    "dropped": "What a rule dropped. Each document counts for the first rule that dropped it.",
    "documents": "The number of documents. In tables by source, language, domain, licence and group: kept ones.",
    "characters": "Unicode code points.",
    "words": (
        "Stretches of text between white space. Other programs divide punctuation from words and count more; "
        "Chinese and Japanese have no white space, so their counts mean little."
    ),
    "bytes": "Bytes of the text in UTF-8, without compression.",
    "tokens": (
        "Tokens of the kept text, without those that stand between documents; of a split, the ids in its shards. "
        f"Where there is no tokenizer, a rough estimate: {BYTES_A_TOKEN} bytes a token."
    ),
    "tokens_how": "How tokens were found: counted with the tokenizer of the folder, or estimated from the bytes.",
    "sources": "A row for each source, as the configuration names it.",
    "source": "The name of a source; empty where none was given.",
    "languages": "A row for each language.",
    "language": (
        "The language as the stage `clean` identified it, ISO 639-1; empty where nobody looked. Short and mixed "
        "texts are often mistaken."
    ),
    "share_kept": "Kept documents as a share of those read.",
    "words_a_document": "The mean number of words of the kept documents.",
    "lengths": "Words a document, with three digits.",
    "lower_quartile": "A quarter of the documents has this value or a smaller one.",
    "median": "Half of the documents have this value or a smaller one.",
    "upper_quartile": "Three quarters of the documents have this value or a smaller one.",
    "bins": "A histogram. The last bin is open; the first holds what is smaller, too.",
    "from": "The smallest value of a bin.",
    "to": "The smallest value of the next bin; none where the bin is open.",
    "dropped_documents": "Documents that a rule dropped.",
    "licences": "Licences as the pages or the configuration state them; nobody has checked them.",
    "licence": "A licence, in the words or the address that was given.",
    "top": "The most frequent ones, the most frequent first.",
    "different": "How many different ones there are; none where there were too many to count.",
    "without": "Kept documents that have none.",
    "too_low_by": (
        "Where there are more different names than are counted at once, a count may be too low by this much."
    ),
    "splits": "The files to train and to validate on.",
    "split": (
        "The name of a split: train, validation or test; `mixed` is the training part after sources are mixed by "
        "weight, in which a document may occur more than once."
    ),
    "samples": "Documents whose names have the smallest hashes: a uniform sample, always the same one.",
    "id": "The name of a document: its file and its place in it. Long names are cut.",
    "url": "The address of a document, where it has one.",
    "why": "The rule that dropped the document, and what it measured.",
    "text": "The beginning of the document.",
    "characters_left_out": "Characters of the document that the sample does not show.",
    # where from
    "collection": "Where the kept documents come from.",
    "domains": "The hosts of the addresses, without `www.`; not the registered domains.",
    "domain": "A host.",
    # what was done
    "preprocessing": "What was done to the documents.",
    "stages": "The stages in their order, with their settings: enough to run them again.",
    "stage": "The name of a stage; `minillm data NAME` runs it alone.",
    "settings": "What the output of the stage depends on.",
    "version": "The version of minillm that ran the stage.",
    "inputs": "The files or sources that the stage read: name, size and a hash of how they begin.",
    "outcomes": (
        "What became of the documents that the stage read, with bytes of text: kept, or the part that they went to, or "
        "the rule that dropped them, in this stage or before."
    ),
    "problems": "Files, lines, pages or rows that the stage could not read; they are in no other count.",
    "first_problems": "The first of the problems.",
    "rules": "A row for each rule that dropped a document, the one that dropped most first.",
    "rule": "The name of a rule. A rule sees only what the rules before it let through.",
    "share_of_documents": "As a share of all documents read.",
    "share_of_characters": "As a share of the characters of all documents read.",
    "reasons": "What the rule measured, with # for numbers, the most frequent first.",
    "reason": "A reason, with # for numbers.",
    "edits": "What the stages changed in the kept documents, as they noted it.",
    "edit": (
        "The kind of change: lines_removed by the rules of `clean`, masked personal data, and removed_lines, "
        "removed_paragraphs and removed_characters that `dedup` found in many documents, and cut_characters around "
        "the texts of evaluation files (`decontaminate --cut`)."
    ),
    "what": "What was changed, or why; empty where there is one kind only.",
    "times": "How often, in all kept documents.",
    "duplicates": "Clusters of documents that are equal, or nearly so, as the stage `dedup` found them.",
    "clusters": "Clusters of two documents or more. The first document of each stays.",
    "documents_in_clusters": "Documents in clusters, the first of each among them.",
    "share_followed": "The share of the clusters whose sizes the histogram shows, a uniform sample; 1 for all.",
    "sizes": "Clusters by their number of documents.",
    "largest": "The clusters with most documents.",
    "cluster": "The name of the cluster: that of its first document.",
    "first_words": "How the first document of the cluster begins.",
    "examples": "Clusters of a uniform sample, with the first documents of each.",
    "members": "Documents of one cluster, in the order of the input.",
    # tokens
    "vocabulary": "How well the tokens fit the kept text.",
    "tokenizer": "The kind of tokenizer.",
    "fingerprint": "A hash of the vocabulary, which the token shards carry, too.",
    "vocab_size": "The number of different tokens.",
    "used": "Tokens that occur in the kept text.",
    "share_used": "Used tokens as a share of the vocabulary.",
    "seldom": "Tokens that occur fewer than 100 times, but do occur: a model learns little about them.",
    "tokens_a_word": (
        "Tokens divided by words. The nearer to 1, the better the vocabulary fits; a language with a high number "
        "costs more to train on and fills the context sooner."
    ),
    "bytes_a_token": "Bytes of text divided by tokens.",
    "unknown_share": "The share of the tokens that stand for unknown text; always 0 for a tokenizer of bytes.",
    "unencodable": "Kept documents that the tokenizer has no tokens for; they are left out of the token counts.",
    # readability
    "readability": (
        "Flesch's reading ease for English, Amstad's for German; about 0 hardest, 100 easiest. Rough: fitted to "
        "running prose of 100 words or more; lists, code, verse and abbreviations mislead it, and two languages "
        "cannot be compared by it. It looks at the first 4,000 characters of a kept document."
    ),
    "mean": "The mean of the scores, each rounded to a whole number.",
    # people
    "people": "Words for groups of people, and insults: how often they occur, and what became of documents with them.",
    "groups": "A row for each list of words.",
    "group": "The name of a list of words: for a group of people, or vulgar and insulting ones.",
    "occurrences": "How often words of the list occur in the kept documents, capital letters aside.",
    "per_million": "Occurrences for every million words of the kept documents.",
    "share_dropped": (
        "The share of the documents that a rule dropped; in the rows of groups, of those with a word of the list. "
        "Where that is well above the share of all documents, the rules remove texts about a group more than "
        "others."
    ),
    "dropped_by": "Which rules dropped documents with a word of the list.",
    "terms": "The words of the list that occur.",
    "term": "A word.",
    # repeating
    "files": "The files of the folder.",
    "file": "The path of a file.",
    "sha256": "The checksum of a file, by which another one can be told to be the same.",
    "limits": "What this card cannot tell.",
    "definitions": "What each key of this file means.",
}

LIMITS = [
    "Word lists count words and not meanings: black and white are also colours, a quotation counts like an opinion, "
    "and names, dialects, new words and other languages than English and German are missing. Low counts are no proof "
    "of absence, and equal counts none of fairness.",
    "The language of short, mixed or rare texts is often wrong, and rules made for English prose drop other "
    "languages, verse, code and spoken language more often than others. Look at the share kept by language and by "
    "source.",
    "Samples show a few documents of many. They may hold personal data, errors and offence: the card shows them "
    "as they are.",
    "Licences and addresses are what the sources state. Nothing here says that a text may be used.",
    "Near-duplicates are those of the settings that stand below. Translations, paraphrases and quotations are not "
    "found.",
]
