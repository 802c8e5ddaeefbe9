"""Objects of a HATS catalogue (Caplar et al. 2025, arXiv:2501.02103) in a part of the sky: of its
Parquet files, one for each pixel of HEALPix, only those that lie there are read."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy import units
from astropy.table import Table

from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.planes import located, refusing
from lensjax.errors import UsageError
from lensjax.places import entries, place, reached

if TYPE_CHECKING:
    from mocpy import MOC

# One of two names, by the version of the format. It is written last.
PROPERTIES = ("hats.properties", "properties")


class Found(NamedTuple):
    """Objects of a catalogue, the files that they were read from, and, where these are not all of
    it, what was read, in words."""

    table: Table
    files: list[str]
    part: str


def read_hats(folder: Path, area: "MOC") -> Found:
    """Returns the objects of a HATS catalogue, or of the main one of a collection, that lie in an
    area, with their position as `ra` and `dec`.

    Raises `UsageError` where there is no such catalogue, or its library is not installed.
    """
    try:
        import hats
        from hats.catalog import Catalog
    except ImportError as error:
        raise UsageError(
            f"{folder} is a folder, and HATS catalogues need hats: pip install '.[hats]'"
        ) from error
    advice = f"; it is to be a folder with {' or '.join(PROPERTIES)}, or a collection of such"
    with refusing(f"{folder} cannot be read as a HATS catalogue", advice), reached(folder):
        found = hats.read_hats(folder, read_moc=False)
        catalogue = getattr(found, "main_catalog", found)
        if not isinstance(catalogue, Catalog):
            raise UsageError(f"{folder} is a HATS {type(found).__name__}, not one of objects")
        near = catalogue.filter_by_moc(area)
        files = [
            file for path in near.get_pixel_paths() for file in _parquet_files(place(str(path)))
        ]
        table = _in_area(files, catalogue.catalog_info, area)
    count, of = len(near.get_healpix_pixels()), len(catalogue.get_healpix_pixels())
    read = [*files, *(catalogue.catalog_base_dir / name for name in PROPERTIES)]
    return Found(table, list(map(str, read)), f"{count} of the {of} pixels of the catalogue")


def _parquet_files(path: Path) -> Iterable[Path]:
    """Returns the file of a pixel, or those in its folder."""
    if path.suffix:
        return [path]
    return [path / name for name, _ in entries(path) if not name.startswith(("_", "."))]


@silenced()
def _in_area(files: Iterable[Path], info: Any, area: "MOC") -> Table:
    """Returns the rows of files that lie in an area, and those that have no position."""
    from lensjax.data.formats import arrow

    def lie_there(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        known = located(ra, dec)
        kept = ~known
        kept[known] = area.contains_lonlat(ra[known] % 360 * units.deg, dec[known] * units.deg)
        return kept

    position = {info.ra_column: "ra", info.dec_column: "dec"}
    table = arrow.read_parquet_where(files, tuple(position), lie_there)
    for column, name in position.items():
        if column != name and name in table.colnames:
            table.rename_column(name, f"{name}_input")
        if column in table.colnames:
            table.rename_column(column, name)
    # The results have it of their own.
    if info.healpix_column in table.colnames:
        table.remove_column(info.healpix_column)
    return table
