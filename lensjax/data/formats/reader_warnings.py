"""Silences what the libraries remark about odd files, which would come once a file and from many
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
_before: tuple[list[Any], int] = ([], 0)


@contextmanager
def silenced() -> Iterator[None]:
    """Silences the remarks as long as any thread is inside; then all filters are as they were.

    `warnings.catch_warnings` puts back what it found, which is another thread's silence where two
    of them overlap.
    """
    global _inside, _before
    with _changing:
        if _inside == 0:
            _before = warnings.filters, _TIFF.level  # type: ignore[assignment]
            _before[0][:0] = _FILTERS
            _TIFF.setLevel(logging.CRITICAL)
        _inside += 1
    try:
        yield
    finally:
        with _changing:
            _inside -= 1
            if _inside == 0:
                _drop_ours(_before[0])
                # Another list where somebody has called `catch_warnings` in between.
                if warnings.filters is not _before[0]:
                    _drop_ours(warnings.filters)  # type: ignore[arg-type]
                _TIFF.setLevel(_before[1])


def _drop_ours(filters: list[Any]) -> None:
    for ours in _FILTERS:
        # A user may have one that is equal; ours stand first, mostly.
        place = next((place for place, each in enumerate(filters) if each is ours), None)
        if place is not None:
            del filters[place]
