"""Matches the planes of the data to the bands of the members, by name."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from lensjax.data.planes import COLOURS, MAX_VALUES, Names, place_of
from lensjax.errors import UsageError

PICTURE_BANDS = ("i", "r", "g")
"""A colour picture of a galaxy shows the i band in red, r in green, g in blue."""

_IMAGE_WORDS = frozenset(
    ("bgsub", "sub", "flux", "sci", "image", "img", "data", "mosaic", "coadd", "stack", "cutout")
)
_LETTERS = "ugrizyjhk"  # by wavelength


class Wanted(NamedTuple):
    """The bands to give out, and what the user said about the data.

    `needed`: the members' bands in their order, None for all that the data hold. `order`: the
    bands of the data in the order of their planes. `called`: pairs of a band and what the data
    call it. Either of these two is empty where nothing was said. `most_values`: of a cutout in a
    file of its own, beyond which it is not decoded.
    """

    needed: tuple[str, ...] | None = None
    order: tuple[str, ...] = ()
    called: tuple[tuple[str, str], ...] = ()
    most_values: int = MAX_VALUES

    @property
    def declared(self) -> tuple[str, ...]:
        """Returns what the data are said to call the bands, else what the members call them."""
        called = dict(self.called)
        needed = self.needed or tuple(called)
        return (*self.order, *(called.get(band, band) for band in needed))


class Selection(NamedTuple):
    """The bands given out, and the number of the plane that each of them is."""

    bands: tuple[str, ...]
    planes: tuple[int, ...]


def parse(needed: Sequence[str] | None, bands: str | None) -> Wanted:
    """Returns what `--bands` says: `i,r,g` is an order, `g=VIS_BGSUB,r=NIR_Y` what the data call
    them.

    Raises `UsageError` for an empty or repeated band and for a mixture of the two forms.
    """
    wanted = Wanted(None if needed is None else tuple(needed))
    if bands is None:
        return wanted
    parts = [part.strip() for part in bands.split(",")]
    pairs = [tuple(word.strip() for word in part.split("=", 1)) for part in parts]
    known = [pair[0] for pair in pairs]
    if not all(all(pair) for pair in pairs) or len(set(known)) < len(known):
        raise UsageError(f"--bands {bands!r} has an empty or repeated band: write i,r,g or g=NAME")
    if len({len(pair) for pair in pairs}) > 1:
        raise UsageError(f"--bands {bands!r} mixes two forms: write i,r,g or g=NAME,r=NAME")
    if len(pairs[0]) == 2:
        return wanted._replace(called=tuple((band, name) for band, name in pairs))
    return wanted._replace(order=tuple(known))


@lru_cache(maxsize=256)
def select(names: Names, wanted: Wanted) -> Selection:
    """Returns the wanted bands among planes of these names.

    Names are compared as they are, then without regard to case, then without the words that
    surveys add (`DES_G_BGSUB` is g, `NIR_Y` is Y). Planes without names are taken in order: as
    `--bands` lists them, else i, r, g for a colour picture, else in the members' order.

    Raises `UsageError` where a band is missing or more than one plane could be it.
    """
    offered, called = _offered(names, wanted), dict(wanted.called)
    if wanted.needed is None:
        bands = tuple(called) or tuple(band for band in offered if band)
    else:
        bands = wanted.needed
    planes = [_find(called.get(band, band), offered) for band in bands]
    if None in planes:
        raise UsageError(_missing(names, wanted))
    return Selection(bands, tuple(plane for plane in planes if plane is not None))


def select_in(where: object, names: Names, wanted: Wanted) -> Selection:
    """As `select`; the error says where the planes are."""
    try:
        return select(names, wanted)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def short_name(name: str) -> str:
    """Returns the band that a plane's name speaks of: `DES_G_BGSUB` gives `G`, `r.MP9601` gives
    `r`."""
    words = _without_image_words(name).split("_")
    # Filters are numbered and described behind the letter, surveys named before it.
    return words[0] if words[0].lower() in _LETTERS else words[-1]


def colours(bands: Sequence[str], places: Sequence[str]) -> list[str]:
    """Returns a note on which colours of a picture are taken as which bands, by where each is in a
    file; none of other files."""
    found = [
        f"{colour} as {band}"
        for channel, colour in enumerate(COLOURS)
        for band, found_in in zip(bands, places, strict=False)
        if found_in == place_of("channel", channel, colour)
    ]
    return [f"colour pictures: {', '.join(found)} (--bands says otherwise)"] if found else []


def reddest(bands: Sequence[str]) -> str:
    """Returns the band of the longest wavelength, by the letter that its name speaks of: those
    without one count as bluer, and of equals the last is taken."""
    wavelength = [_LETTERS.find(short_name(band).lower()) for band in bands]
    return bands[max(range(len(bands)), key=lambda place: (wavelength[place], place))]


def _offered(names: Names, wanted: Wanted) -> Names:
    """Returns the band that each plane of the data is, or the data's own name where that must
    do."""
    if wanted.called:
        return names
    if wanted.order:
        # Red, green and blue are places in a picture; other names are the data's own.
        own = names if names != COLOURS else (None,) * len(names)
        found = {_find(band, own): band for band in wanted.order}
        if None not in found:
            return tuple(found.get(plane) for plane in range(len(names)))
        if len(wanted.order) != len(names):
            raise UsageError(
                f"--bands names {len(wanted.order)} bands ({', '.join(wanted.order)}), but the "
                f"data hold {_list(names)}: name them all in their order, or as g=NAME,r=NAME"
            )
        return wanted.order
    if names == COLOURS:
        return PICTURE_BANDS
    if any(names):
        return names if wanted.needed else _short_names(names)
    if wanted.needed and len(wanted.needed) == len(names):
        return wanted.needed
    if len(names) == len(PICTURE_BANDS) and not wanted.needed:
        return PICTURE_BANDS
    return tuple(f"band{plane + 1}" for plane in range(len(names)))


def _short_names(names: Names) -> Names:
    """Returns the bands that the names speak of; the names as they are where two would be one
    band."""
    short = tuple(name and short_name(name) for name in names)
    folded = [name.casefold() for name in short if name]
    return short if len(set(folded)) == len(folded) else names


def _find(band: str, names: Names) -> int | None:
    """Returns the number of the plane called `band`; None where there is none."""
    readings = (
        lambda name: name == band,
        lambda name: name.casefold() == band.casefold(),
        lambda name: _without_image_words(name).casefold() == band.casefold(),
        lambda name: short_name(name).casefold() == band.casefold(),
    )
    for reading in readings:
        found = [plane for plane, name in enumerate(names) if name and reading(name)]
        if len(found) > 1:
            held = ", ".join(str(names[plane]) for plane in found)
            raise UsageError(f"band {band} may be any of {held}: choose by --bands {band}=NAME")
        if found:
            return found[0]
    return None


def _without_image_words(name: str) -> str:
    words = re.split(r"[^A-Za-z0-9]+", name)
    while len(words) > 1 and words[-1].lower() in _IMAGE_WORDS:
        words.pop()
    return "_".join(words)


def _missing(names: Names, wanted: Wanted) -> str:
    said = ", ".join(wanted.order or (f"{band}={name}" for band, name in wanted.called))
    held = f"{_list(names)}, said to be {said}" if said else _list(names)
    needed = wanted.needed or tuple(band for band, _ in wanted.called)
    return (
        f"the members need bands {', '.join(needed)}, but the data hold {held}: "
        "say which bands these are with --bands (i,r,g in their order, or g=NAME,r=NAME)"
    )


def _list(names: Names) -> str:
    if len(names) == 1 and names[0] is None:
        return "1 channel (grey)"
    if names == COLOURS:
        return "3 channels (red, green, blue)"
    if any(names):
        return ", ".join(name or "(no name)" for name in names)
    return f"{len(names)} channels without names"
