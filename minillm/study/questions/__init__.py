"""Questions that a person has about a step of one's own, one call each; minillm/study/__init__.py lists them."""
