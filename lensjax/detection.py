"""Which of the sources in survey tiles are objects to score: the options, and the selection."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from lensjax.errors import UsageError, refuse


class Colour(NamedTuple):
    """A colour, that of two bands, and the range in which it is to be."""

    blue: str
    red: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.blue}-{self.red}"

    @property
    def is_cut(self) -> bool:
        return math.isfinite(self.low) or math.isfinite(self.high)


@dataclass(frozen=True)
class DetectOptions:
    """How objects are found in tiles, in the options of a script."""

    detect: bool = False
    """Find the objects in the tiles of --data, instead of reading a catalogue of them: sources that
    are bright enough and larger than a star."""
    detect_band: str | None = None
    """With --detect: band in which objects are found (None: the reddest that the members see)."""
    detect_sigma: float = 5.0
    """With --detect: sigmas by which the pixels of a source exceed the noise."""
    faintest: float | None = 22.0
    """With --detect: faintest magnitude of objects in that band (None: any)."""
    least_snr: float = 0.0
    """With --detect: lowest signal-to-noise ratio of objects in that band."""
    least_size: float = 1.15
    """With --detect: smallest half-light radius of objects, in units of that of the tile's stars
    (0: any)."""
    colour: str | None = None
    """With --detect: colour to measure, as g-i, or the range of it that objects have, as
    g-i=1.0,3.5, or g-i=1.0 for at least 1.0."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        others = (option for option in fields(DetectOptions) if option.name != "detect")
        changed = [each.name for each in others if getattr(self, each.name) != each.default]
        first = f"--{changed[0].replace('_', '-')}" if changed else ""
        wrong = {
            f"{first} is for --detect: give that too": bool(changed) and not self.detect,
            "--detect-sigma must be more than 0": not self.detect_sigma > 0,
        }
        refuse(wrong)
        self.colour_range()

    def colour_range(self) -> Colour | None:
        """Returns what `colour` says. Raises UsageError where it is no colour."""
        if self.colour is None:
            return None
        bands, _, ends = self.colour.partition("=")
        low, _, high = ends.partition(",")
        try:
            blue, red = (name.strip() for name in bands.split("-"))
            found = Colour(blue, red, float(low or "-inf"), float(high or "inf"))
        except ValueError:
            found = Colour("", "", 0, 0)
        if not (found.blue and found.red and found.low < found.high):
            raise UsageError(
                f"--colour {self.colour} is none: give two bands, g-i, or also a range, g-i=1.0,3.5"
            )
        return found


def left_out(
    found: Mapping[str, np.ndarray], options: DetectOptions, band: str
) -> dict[str, np.ndarray]:
    """Returns for each reason which sources (n,) bool are no objects for that reason, the first
    that holds; `found` are columns of `tile_search.search`.

    A size that is not known leaves none out, a magnitude or a colour that is not known does.
    """
    colour = options.colour_range()
    tests = {f"saturated in {band}": found["saturated"], "masked at the centre": found["masked"]}
    if options.faintest is not None:
        tests[f"fainter than {options.faintest:g} in {band}"] = ~(found["mag"] <= options.faintest)
    tests[f"S/N below {options.least_snr:g}"] = ~(found["snr"] >= options.least_snr)
    tests[f"smaller than {options.least_size:g} times the stars"] = (
        found["size_ratio"] < options.least_size
    )
    if colour is not None and colour.is_cut:
        value = found["colour"]
        tests[f"{colour} not known"] = np.isnan(value)
        tests[f"{colour} outside {colour.low:g} to {colour.high:g}"] = ~(
            (value >= colour.low) & (value <= colour.high)
        )
    left = np.ones(len(found["ra"]), bool)
    for reason, test in tests.items():
        tests[reason], left = test & left, left & ~test
    return tests
