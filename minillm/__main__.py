"""`python -m minillm` is the same as `minillm`."""

import signal


def main() -> None:
    """Load and run the command line; Ctrl-C while it loads ends the program silently."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from minillm import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


if __name__ == "__main__":
    main()
