"""`python -m minillm` is the same as `minillm`."""

from minillm.cli import main

main()
