"""The CPU's pairs: the formulas of ops/ in row blocks that stay in cache, on several threads, with memory used twice.

`<op>.py` holds `forward` and `backward` of the operation of that name, with the signatures of its plain pair. An
operation without a file here is fast enough as it is derived.
"""
