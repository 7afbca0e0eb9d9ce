"""Raw files of any kind as documents: the first stage, `minillm data extract`. sources.py says which files are read.

    files -> bytes (streams.py, archives.py) -> pieces (pieces.py, records.py, warc.py) -> documents (extract.py)

One process finds the files, decompresses them and cuts them into pieces; workers decode the pieces (encodings.py), take
the main text out of pages (pages.py) and repair what they find. What cannot be read is counted and named (skipped.py).
"""

from minillm.corpus.readers.extract import Extract, extract, first_document

__all__ = ["Extract", "extract", "first_document"]
