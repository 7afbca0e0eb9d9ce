"""Makes model_checks.py, which the tests of all models share, importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("model_checks")
