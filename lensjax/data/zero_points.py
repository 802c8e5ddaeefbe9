"""What AB magnitude one unit of flux has: by what a user says, or by the header of an image; and
where the header says that pixels saturate."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lensjax.errors import UsageError

KEYWORDS = ("MAGZERO", "PHOTZP", "MAGZP", "ZEROPT", "ZEROPNT", "ZP", "MAGZPT")
"""Keywords by which surveys give it, the least ambiguous first: MAGZPT may be for one second."""
UNITS = {"nanomaggy": 22.5, "nanomaggies": 22.5, "nmgy": 22.5, "nJy": 31.4, "uJy": 23.9, "Jy": 8.9}
"""Units of flux, as BUNIT has them, that are a magnitude by themselves."""


def zero_point(header: Mapping[str, Any]) -> float | None:
    """Returns the magnitude of one unit of flux by the header of an image, None where it has none:
    by one of KEYWORDS, by the flux of magnitude zero (FLUXMAG0, as HSC has it), or by the unit."""
    values = [value for keyword in KEYWORDS if (value := _number(header, keyword)) is not None]
    if values:
        return values[0]
    flux = _number(header, "FLUXMAG0")
    if flux is not None and flux > 0:
        return 2.5 * math.log10(flux)
    return UNITS.get(str(header.get("BUNIT", "")).strip())


def saturation(header: Mapping[str, Any]) -> float | None:
    """Returns the value at which pixels saturate by the header of an image (SATURATE), None where
    it says none above zero."""
    value = _number(header, "SATURATE")
    return value if value is not None and value > 0 else None


def _number(header: Mapping[str, Any], keyword: str) -> float | None:
    value: Any = header.get(keyword)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def parse_zero_points(said: str, bands: Sequence[str]) -> tuple[float, ...]:
    """Returns the magnitude of one unit in each of the bands: what is said is one number, or one a
    band with commas between. Raises `UsageError` where it is neither."""
    try:
        values = tuple(float(part) for part in said.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, len(bands)) or not all(map(math.isfinite, values)):
        raise UsageError(
            f"--zero-point {said}: give one number, or one for each of {','.join(bands)}"
        )
    return values * len(bands) if len(values) == 1 else values
