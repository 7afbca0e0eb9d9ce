"""The commands of the command line, a file for each or for a small family; `minillm/cli.py` has their list."""
