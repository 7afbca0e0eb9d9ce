"""The stepper: one training step, line by line, with its numbers, as data, in a terminal and as a page."""
