"""Names of objects by their places in the sky, the same whatever else is in a list."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from lensjax.data.planes import located


def designations(ra: np.ndarray, dec: np.ndarray) -> Iterator[str]:
    """Yields names by places (n,) in degrees, `J102233.45-051234.5`: cut off, not rounded, as the
    IAU has it. What has no place is `nowhere`. Where a name has been given, a number is added."""
    given: Counter[str] = Counter()
    known = located(ra, dec)
    ra, dec = (np.where(known, degrees, 0.0) for degrees in (ra, dec))
    time = np.floor(np.mod(ra, 360) / 15 * 360_000).astype(np.int64)  # in hundredths of a second
    arc = np.floor(np.abs(dec) * 36_000).astype(np.int64)  # in tenths of an arcsec
    columns = (each.tolist() for each in (time, arc, dec < 0, known))
    for t, a, is_south, is_known in zip(*columns, strict=True):
        hours = f"{t // 360_000:02}{t // 6000 % 60:02}{t // 100 % 60:02}.{t % 100:02}"
        degrees = f"{a // 36_000:02}{a // 600 % 60:02}{a // 10 % 60:02}.{a % 10}"
        name = f"J{hours}{'-' if is_south else '+'}{degrees}" if is_known else "nowhere"
        given[name] += 1
        yield name if given[name] == 1 else f"{name}-{given[name]}"
