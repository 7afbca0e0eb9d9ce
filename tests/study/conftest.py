"""The `ranks` fixture of tests/parallel, for tests here that train on several ranks."""

from tests.parallel.conftest import ranks

__all__ = ["ranks"]
