"""The stepper: one training step, line by line, with its numbers, as data, in a terminal and as a page.

`minillm.study.step(loss)` walks through a backward in the terminal, in place of `loss.backward()`; see terminal.py.
"""

from minillm.study.step.terminal import module_is_callable, step

__all__ = ["step"]

module_is_callable(__name__)
