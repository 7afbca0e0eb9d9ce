"""From raw files to text worth training on: read, clean, deduplicate, decontaminate, split, report (`minillm data`)."""
