"""The candidates as a HATS catalogue, which LSDB reads: a Parquet file for each piece of the sky.

The layout is that of HATS (Caplar et al. 2025, arXiv:2501.02103): pixels of HEALPix, nested, split
where they hold too many rows.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax import __version__
from lensjax.coverage import ORDER
from lensjax.files import replacing

FOLDER = "candidates.hats"
MOST_ROWS = 500_000
_FINEST = 12  # 52 arcsec across, in which no survey has so many galaxies
_TO_A_FOLDER = 10_000

Array = NDArray[Any]


def pixels(cells: Array, most: int = MOST_ROWS) -> Iterator[tuple[int, int, slice]]:
    """Yields order and number of the pixels that hold at most so many rows each, and the place of
    these; `cells` (n,) are the rows' cells at order 29, sorted."""
    pending = [(0, number) for number in reversed(range(12))]
    while pending:
        order, number = pending.pop()
        ends = np.array([number, number + 1], np.int64) << 2 * (ORDER - order)
        first, last = np.searchsorted(cells, ends).tolist()
        if last - first > most and order < _FINEST:
            pending += [(order + 1, 4 * number + child) for child in reversed(range(4))]
        elif first < last:
            yield order, number, slice(first, last)


def write(
    folder: Path,
    candidates: Table,
    write_parquet: Callable[[Path, Table], None],
    most: int = MOST_ROWS,
) -> None:
    """Writes candidates.hats into `folder`, of the candidates whose position is known.

    `candidates` have the columns ra, dec and _healpix_29; `write_parquet` writes some rows of them.
    The file that says that there is a catalogue, hats.properties, is written last.
    """
    import pyarrow.parquet

    from lensjax.data.formats import arrow

    if "_healpix_29" not in candidates.colnames:
        return
    cells = np.ma.asarray(candidates["_healpix_29"])
    order = np.argsort(cells.data, kind="stable")
    rows = order[~np.ma.getmaskarray(cells)[order]]
    root, listed = folder / FOLDER, []
    for level, number, place in pixels(cells.data[rows], most):
        inside = f"Norder={level}/Dir={number // _TO_A_FOLDER * _TO_A_FOLDER}/Npix={number}.parquet"
        write_parquet(root / "dataset" / inside, candidates[rows[place]])
        listed.append(f"{level},{number}")
    with replacing(root / "dataset" / "_common_metadata") as file:
        pyarrow.parquet.write_metadata(arrow.schema(candidates), file)
    _write_text(root / "partition_info.csv", "\n".join(["Norder,Npix", *listed]))
    said = _properties(rows.size, most)
    for name in ("properties", "hats.properties"):
        _write_text(root / name, "\n".join(f"{key}={value}" for key, value in said.items()))


def _properties(count: int, most: int) -> Mapping[str, object]:
    return {
        "obs_collection": "lens_candidates",
        "dataproduct_type": "object",
        "hats_nrows": count,
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": "_healpix_29",
        "hats_col_healpix_order": ORDER,
        "hats_max_rows": most,
        "hats_npix_suffix": ".parquet",
        "hats_builder": f"lensjax {__version__}",
        "hats_version": "v1.0",
    }


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(f"{text}\n".encode())
