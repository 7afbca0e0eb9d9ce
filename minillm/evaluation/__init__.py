"""Measure models: how likely they find a text, which answer they choose, and how well they write.

Each file has the measures of one kind of task as plain functions. likelihood.py scores texts; perplexity.py,
multiple_choice.py and generation.py build on it or on `generate`; intervals.py says how far a number can be trusted.
The conventions are those of EleutherAI's lm-evaluation-harness, unless a docstring says otherwise.
"""
