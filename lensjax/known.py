"""Known lenses among the cutouts of a run, and how complete the top of its list is in them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax.data.formats.tables import read_table, standardise, texts
from lensjax.data.planes import located
from lensjax.errors import UsageError, refuse
from lensjax.intervals import share_interval
from lensjax.places import exists, place
from lensjax.predictions import Predictions
from lensjax.trust.run import Said

if TYPE_CHECKING:
    from mocpy import MOC

TOPS = (10, 100, 1000)
_UNIT = re.compile(r"\s*[\[(].*")  # lenscat has `RA [deg]`

Array = NDArray[Any]


@dataclass(frozen=True)
class KnownOptions:
    """What is known of lenses in the sky that is searched."""

    known: str | None = None
    """Table of known lenses with ra and dec, as lenscat's: marks them among the candidates."""
    known_radius: float = 3.0
    """Arcsec within which a cutout is of a known lens."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        refuse({"--known-radius must be more than 0": not self.known_radius > 0})


def lenses_of(options: KnownOptions) -> Table | None:
    """Returns the lenses of --known as `read_lenses` does, None without it."""
    return None if options.known is None else read_lenses(place(options.known))


def read_lenses(path: Path) -> Table:
    """Returns `name`, `ra` and `dec` in degrees, and `grading` (empty where the table has none) of
    the known lenses in a table: CSV, Parquet, VOTable or FITS.

    Columns are found in any case, with or without a unit in brackets behind them. Lenses without a
    position are left out. Raises UsageError where the table cannot be read or has no positions.
    """
    if not exists(str(path)):
        raise UsageError(f"--known {path}: no such file")
    table = read_table(path)
    bare = table.copy(copy_data=False)
    bare.rename_columns(table.colnames, _bare_names(table.colnames))
    bare = standardise(bare, str(path))
    missing = [name for name in ("ra", "dec") if name not in bare.colnames]
    if missing:
        raise UsageError(
            f"--known {path} has no column {' and '.join(missing)}; its columns are "
            f"{', '.join(table.colnames)}"
        )
    by_case = {name.lower(): name for name in reversed(bare.colnames)}
    named = next((by_case[name] for name in ("name", "id") if name in by_case), None)
    count = len(bare)
    names = list(texts(bare[named])) if named else [f"row {row}" for row in range(1, count + 1)]
    grading = list(texts(bare[by_case["grading"]])) if "grading" in by_case else [""] * count
    lenses = Table({"name": names, "ra": bare["ra"], "dec": bare["dec"], "grading": grading})
    lenses = lenses[located(lenses["ra"], lenses["dec"])]
    if not len(lenses):
        raise UsageError(f"--known {path} has no lens with a position in degrees")
    return lenses


def _bare_names(columns: list[str]) -> list[str]:
    """Returns the names without units in brackets, unless two would be the same."""
    bare = [_UNIT.sub("", name) or name for name in columns]
    return bare if len(set(bare)) == len(bare) else columns


def nearest(predictions: Predictions, lenses: Table, radius: float) -> tuple[Array, Array]:
    """Returns which of the lenses is nearest to each cutout that is scored, -1 where none is within
    `radius` arcsec, and how far away it is in arcsec, NaN there; (n,) both."""
    from astropy import units
    from astropy.coordinates import SkyCoord

    rows = np.flatnonzero(predictions.readable & located(predictions.ra, predictions.dec))
    lens, distance = np.full(len(predictions.ra), -1), np.full(len(predictions.ra), np.nan)
    if rows.size:
        cutouts = SkyCoord(predictions.ra[rows], predictions.dec[rows], unit=units.deg)
        there = SkyCoord(lenses["ra"], lenses["dec"], unit=units.deg)
        found, apart, _ = cutouts.match_to_catalog_sky(there)
        near = apart.arcsec <= radius
        lens[rows[near]], distance[rows[near]] = found[near], apart.arcsec[near]
    return lens, distance


def said(
    predictions: Predictions, lenses: Table | None, radius: float, area: "MOC | None" = None
) -> Said:
    """Returns the columns `known_lens` and `known_separation`, masked where there is none, and how
    many of the known lenses are among the scored cutouts and at the top of them; nothing where no
    lenses are given.

    A lens counts once, by its best cutout; of lenses that lie within a few arcsec of each other, a
    cutout is of the nearest. Intervals of shares are exact, 95 %. `area` is the sky in which an
    object would have been scored: a lens in it that is not among the cutouts was no object.
    """
    if lenses is None:
        return Said({}, {}, [])
    lens, distance = nearest(predictions, lenses, radius)
    names = np.asarray(lenses["name"], np.str_)[lens]
    columns = {
        "known_lens": np.ma.masked_array(names, lens < 0),
        "known_separation": np.ma.masked_array(distance, lens < 0),
    }
    ranked = lens[predictions.ranking()]
    held, best = np.unique(ranked, return_index=True)
    held, best = held[held >= 0], best[held >= 0]
    grading = np.asarray(lenses["grading"], np.str_)[held]
    tops = [top for top in TOPS if top < ranked.size]
    kinds = {grade: best[grading == grade] for grade in sorted(set(grading.tolist()) - {""})}
    record = {
        "radius": radius,
        "lenses": len(lenses),
        **({} if area is None else _in_area(lenses, held, area)),
        **_completeness(best, tops),
        "by_grading": {grade: _completeness(of_kind, tops) for grade, of_kind in kinds.items()},
    }
    return Said(columns, {"known": record}, _notes(record))


def _in_area(lenses: Table, held: Array, area: "MOC") -> dict[str, int]:
    """Returns how many lenses lie in an area, and how many of these are not among those `held`."""
    from astropy import units

    ra, dec = (np.asarray(lenses[name], np.float64) for name in ("ra", "dec"))
    inside = area.contains_lonlat(ra % 360 * units.deg, dec * units.deg)
    others = np.setdiff1d(np.flatnonzero(inside), held)
    return {"in_area": int(inside.sum()), "in_area_not_scored": int(others.size)}


def _completeness(best: Array, tops: list[int]) -> dict[str, Any]:
    """Returns how many lenses there are, and for each top of the list the number found, the share
    and its interval, by the best rank of each lens, from 0."""
    found = {}
    for top in tops:
        count = int((best < top).sum())
        low, high = (float(end) for end in share_interval(count, best.size))
        share = count / best.size if best.size else np.nan
        found[str(top)] = {"found": count, "share": share, "low": low, "high": high}
    return {"scored": int(best.size), "top": found}


def _notes(record: dict[str, Any]) -> list[str]:
    """Returns what is said of known lenses, for people."""
    notes = [
        f"{record['scored']:,} of {record['lenses']:,} known lenses are among the scored cutouts "
        f"(within {record['radius']:g} arcsec)"
    ]
    if "in_area" in record:
        notes.append(
            f"{record['in_area']:,} known lenses lie in the area that was searched: "
            f"{record['in_area_not_scored']:,} of them are not among the scored cutouts"
        )
    if record["scored"]:
        notes += [
            f"the top {int(top):,} has {found['found']:,} of these {record['scored']:,}: "
            f"completeness {found['share']:.3g} ({found['low']:.3g} to {found['high']:.3g})"
            for top, found in record["top"].items()
        ]
    return notes
