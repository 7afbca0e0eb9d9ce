"""The ledger: claims about a model, its training and its files, each proved by numbers on that very model.

`check(subject)` yields the verdicts. A claim is in the file of its kind: gradients.py, engines.py, batches.py,
generation.py, files.py, adapters.py, resuming.py, divided.py. subject.py has the model and the data, steps.py the
training steps that most claims compare, and rounding.py derives how far two of them may be apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from minillm.errors import InputError, did_you_mean
from minillm.study.ledger import adapters, batches, divided, engines, files, generation, gradients, resuming
from minillm.study.ledger.claim import Claim, Verdict, judge
from minillm.study.ledger.divided import Division
from minillm.study.ledger.subject import Subject, open_subject

__all__ = ["CLAIMS", "Claim", "Subject", "Verdict", "check", "open_subject"]

EACH = "`minillm gradcheck` checks the backward of each operation alone"
COMPARED = "`{step} --compare plain,%s` names the first that differs in a step"

CLAIMS = {
    claim.name: claim
    for claim in (
        Claim("ops", "every operation's backward is the derivative of its forward", gradients.every_op),
        Claim("gradient", "the model's gradient is that of central differences", gradients.whole_model, EACH),
        Claim(
            *("fast", "the fast engine computes what the plain formulas do", engines.fast_is_plain),
            f"{EACH}; {COMPARED % 'fast'}",
        ),
        Claim(
            *("kernels", "the CUDA kernels compute what the plain formulas do", engines.kernels_are_plain),
            COMPARED % "emulate",
        ),
        Claim("float32", "float32 is within its rounding error of float64", engines.float32_is_near),
        Claim("micro-batches", "a batch in parts gives the step of the whole batch", batches.micro_batches),
        Claim("recompute", "blocks that are computed again give the step of kept ones", batches.recomputed),
        Claim("dropout", "dropout masks repeat from a seed", batches.dropout_repeats),
        Claim("mask", "a token that is hidden from an output does not change it", batches.masked),
        Claim("packed", "texts that share a row are computed as if each stood alone", batches.packed),
        Claim("kv-cache", "with a KV cache, the logits are those of the whole text", generation.cached_is_whole),
        Claim("saved", "training from a saved and loaded checkpoint goes on as before", files.saved_is_loaded),
        Claim("resumed", "a run that was stopped and resumed is one that was not", resuming.resumed_is_uninterrupted),
        Claim("hugging-face", "in and out of Hugging Face's files, the model is the same", files.hugging_face),
        Claim("lora", "merged adapters compute what adapters beside the weights do", adapters.merged_is_unmerged),
        Claim("dp", "data parallel on 2 ranks is the training of one process", divided.of(Division(dp=2))),
        Claim("zero1", "ZeRO 1 on 2 ranks is the training of one process", divided.of(Division(dp=2, zero=1))),
        Claim("zero2", "ZeRO 2 on 2 ranks is the training of one process", divided.of(Division(dp=2, zero=2))),
        Claim("zero3", "ZeRO 3 on 2 ranks is the training of one process", divided.of(Division(dp=2, zero=3))),
        Claim("tp", "tensor parallel on 2 ranks is the training of one process", divided.of(Division(tp=2))),
        Claim("pp", "a pipeline of 2 ranks is the training of one process", divided.of(Division(pp=2))),
    )
}


def check(subject: Subject, only: str | None = None) -> Iterator[Verdict]:
    """The verdict on each claim, or on the one that is named.

    Raises: InputError for a name that no claim has.
    """
    if only is not None and only not in CLAIMS:
        raise InputError(f"check: there is no claim {only!r}{did_you_mean(only, CLAIMS)}")
    for name, claim in CLAIMS.items():
        if only in (None, name):
            yield judge(claim, subject)
