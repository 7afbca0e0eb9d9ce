"""Duplicates: exact, near (MinHash and locality-sensitive hashing), and lines that stand in many documents.

Read minhash.py first, then lsh.py. words.py, one folder up, makes numbers of words; sketches.py keeps what is known of
each document in files; verdicts.py finds the clusters; repeated.py counts lines; stage.py is the stage `dedup`.
"""

from minillm.corpus.duplicates.options import Dedup
from minillm.corpus.duplicates.stage import DedupStage

__all__ = ["Dedup", "DedupStage"]
