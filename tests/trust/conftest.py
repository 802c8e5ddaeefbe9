"""What the tests of promises share."""

import functools

import pytest

from lensjax.trust import envelope


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch) -> None:
    """Has the paths of an envelope be drawn once for all surveys of a size."""
    monkeypatch.setattr(envelope, "envelope", functools.cache(envelope.envelope))
