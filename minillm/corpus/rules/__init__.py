"""Rules that decide whether a document is text worth training on: the stage `clean`."""

from minillm.corpus.rules.cleaning import RULES, Clean, CleanStage, Explanation, clean_document, explain

__all__ = ["RULES", "Clean", "CleanStage", "Explanation", "clean_document", "explain"]
