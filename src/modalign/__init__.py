"""modalign: cross-modal search with the encoders one already has.

The names below load what they need when they are first asked for: `import modalign` costs
milliseconds, and a command that needs no network never waits for torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# A row has the same bits by one thread or by several. MKL reads this at its first product: on
# processors with AVX-512 it would otherwise round by how many threads share it.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from modalign.comparing import compare
    from modalign.encoders import load_encoder
    from modalign.errors import (
        CorruptError,
        DataError,
        MismatchError,
        MissingExtraError,
        ModalignError,
        OverloadedError,
        ShapeError,
        UsageError,
    )
    from modalign.gallery import Gallery
    from modalign.pairs import read_items, read_pairs
    from modalign.space import Space, align, load_space
    from modalign.space.attaching import attach

    __version__: str

__all__ = [
    "CorruptError",
    "DataError",
    "Gallery",
    "MismatchError",
    "MissingExtraError",
    "ModalignError",
    "OverloadedError",
    "ShapeError",
    "Space",
    "UsageError",
    "__version__",
    "align",
    "attach",
    "compare",
    "load_encoder",
    "load_space",
    "read_items",
    "read_pairs",
]

_HOMES = {
    "Gallery": "gallery",
    "Space": "space",
    "align": "space",
    "attach": "space.attaching",
    "compare": "comparing",
    "load_encoder": "encoders",
    "load_space": "space",
    "read_items": "pairs",
    "read_pairs": "pairs",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in, once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _version() if name == "__version__" else _load(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _load(name: str) -> Any:
    # What has no other home is an error class.
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def _version() -> str:
    # Imported here: it reads the installed packages' metadata, which takes longer than the rest.
    from importlib.metadata import version

    return version("modalign")
