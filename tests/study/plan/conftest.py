"""Plans for tests, and the `ranks` fixture of tests/parallel."""

from __future__ import annotations

import pytest

from minillm.study.plan import Assumptions, make_plan, model_of
from minillm.study.plan.gpus import find_gpu
from minillm.study.plan.languages import LANGUAGES, need, rates_of
from tests.parallel.conftest import ranks

__all__ = ["ranks"]


@pytest.fixture(scope="session")
def planned():
    """A function that plans as the command does; equal plans are made once."""
    made = {}

    def plan(parameters=None, gpu="h100", gpus=1, tokens=None, language="en", batch=None, context=None, **model):
        key = (parameters, gpu, gpus, tokens, language, batch, context, *model.items())
        if key not in made:
            found = find_gpu(gpu)
            made[key] = make_plan(
                model_of(parameters, model.get("model"), model.get("vocab_size", 32000), context),
                tokens,
                found,
                gpus,
                batch,
                Assumptions(found.price, found.power, 1.1, 0.9),
                lambda tokens: need(tokens, LANGUAGES[language], rates_of(LANGUAGES[language])),
                language,
            )
        return made[key]

    return plan
