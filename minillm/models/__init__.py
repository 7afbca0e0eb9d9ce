"""Models: one file each, reading top to bottom."""
