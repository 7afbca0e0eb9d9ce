"""The pipeline from raw files to text worth training on: read, clean, deduplicate, split, report (`minillm data`)."""
