"""Silences the warnings of libraries about odd files, which would come once per file and from many
threads: where a file cannot be used, the reason is in `Unreadable`."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from astropy.utils.exceptions import AstropyWarning
from PIL import Image

_CATEGORIES = (AstropyWarning, Image.DecompressionBombWarning)
_FILTERS: list[Any] = [("ignore", None, category, None, 0) for category in _CATEGORIES]
_TIFF = logging.getLogger("tifffile")

_changing = threading.Lock()
_inside = 0
_before: Any = []
_level = 0


@contextmanager
def silenced() -> Iterator[None]:
    """Silences the remarks as long as any thread is inside; then all filters are as they were.

    `warnings.catch_warnings` puts back what it found, which is another thread's silence where two
    of them overlap.
    """
    global _inside, _before, _level
    with _changing:
        if _inside == 0:
            _before, _level = warnings.filters, _TIFF.level
            _before[:0] = _FILTERS
            _TIFF.setLevel(logging.CRITICAL)
        _inside += 1
    try:
        yield
    finally:
        with _changing:
            _inside -= 1
            if _inside == 0:
                _TIFF.setLevel(_level)
                # Two lists where somebody has called `catch_warnings` in between.
                _remove_ours(_before)
                _remove_ours(warnings.filters)


def _remove_ours(filters: Any) -> None:
    """Removes these filters, and none of a user's that is equal to one of them."""
    filters[:] = [each for each in filters if all(each is not ours for ours in _FILTERS)]
