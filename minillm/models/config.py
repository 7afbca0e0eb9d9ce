"""What the configurations of all models share: sizes that have a name."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, Self

from minillm.errors import InputError, did_you_mean


class Config:
    """The base of frozen dataclasses whose file has named sizes, `PRESETS`."""

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A named size, with some fields changed: `GPT2Config.preset("tiny", vocab_size=65)`.

        Raises: InputError for an unknown name, with the nearest; what the class raises for fields that cannot be.
        """
        files = [vars(sys.modules[kind.__module__]) for kind in cls.__mro__]
        presets = next(file["PRESETS"] for file in files if "PRESETS" in file)
        if name not in presets:
            raise InputError(f"{cls.__name__}: no preset is called {name!r}{did_you_mean(name, presets)}")
        return replace(presets[name], **changes)
