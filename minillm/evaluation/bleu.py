"""BLEU of translations: sacrebleu's, which is an optional dependency, so that numbers compare with published ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minillm.errors import InputError
from minillm.evaluation.intervals import Measure, bootstrap


def bleu(translations: Sequence[str], references: Sequence[str], seed: int = 0) -> Measure:
    """BLEU of all translations together (0 to 100; 13a tokens, mixed case), with a bootstrapped interval.

    Raises: InputError if sacrebleu is missing, or there is not one reference for each translation.
    Source: Papineni et al. 2002; Post 2018 (arXiv:1804.08771) for the settings; Koehn 2004 for the interval.
    """
    metric, n = _metric(), len(references)
    if len(translations) != n or not n:
        raise InputError(f"bleu: there are {len(translations)} translations for {n} references; give one for each")
    scores = [metric.corpus_score([one], [[other]]) for one, other in zip(translations, references, strict=True)]
    rows = np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])  # (n, 10)

    def of_sums(sums: np.ndarray) -> np.ndarray:
        """BLEU of the summed counts (..., 10)."""
        flat = np.rint(sums).astype(int).reshape(-1, rows.shape[1]).tolist()
        found = [metric.compute_bleu(row[:4], row[4:8], *row[8:]).score for row in flat]
        return np.array(found).reshape(sums.shape[:-1])

    return bootstrap(rows, of_sums, denominator=n, unit="sentences", item="sentence", seed=seed)


def _metric() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise InputError('bleu: sacrebleu is missing; pip install "minillm[translation]"') from None
    return BLEU()
