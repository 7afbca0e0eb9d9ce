"""The version of minillm, where the command line finds it too."""

__version__ = "0.1.0"
