"""Models: one file each, read from top to bottom; a long configuration has a file of its own beside it."""
