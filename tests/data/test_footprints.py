"""What several tiles show is kept once."""

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from lensjax.data.footprints import footprint, once
from tests.data import skies

SHAPE, WITHIN = (300, 400), 1.0


@pytest.mark.parametrize("error", [0.0, 0.15])
def test_each_source_is_kept_once_where_tiles_do_not_agree_about_its_place(error):
    """`error`: by how much the places in a tile are wrong, arcsec in right ascension and
    declination, at random."""
    headers = [
        skies.header(0.0, 10.0, SHAPE),
        skies.header(0.015, 10.0, SHAPE),
        skies.header(0.008, 10.01, SHAPE, angle=20.0),
        skies.header(50.0, 10.0, SHAPE),
    ]
    rng = np.random.default_rng(0)
    # Many along the line on which the first two tiles are equally deep.
    ra = np.concatenate([rng.uniform(-0.015, 0.03, 700), 0.0075 + rng.normal(0, 2e-5, 30)])
    dec = np.concatenate([rng.uniform(9.985, 10.02, 700), np.linspace(9.993, 10.0, 30)])
    true = SkyCoord(ra, dec, unit="deg")
    apart = true.separation(true[:, None]).arcsec
    true = true[np.sort(apart, axis=0)[1] > 2.5 * WITHIN]
    of, tile, sky = [], [], []
    for number, header in enumerate(headers):
        x, y = WCS(header).all_world2pix(true.ra.deg, true.dec.deg, 0, quiet=True)
        edge = np.minimum(np.minimum(x, SHAPE[1] - 1 - x), np.minimum(y, SHAPE[0] - 1 - y))
        inside = np.flatnonzero(edge > 2)
        offsets = error * rng.uniform(-1, 1, (2, inside.size)) * units.arcsec
        sky.append(true[inside].spherical_offsets_by(*offsets))
        of.append(inside)
        tile.append(np.full(inside.size, number))
    of, tile = np.concatenate(of), np.concatenate(tile)
    ra, dec = (np.concatenate([getattr(s, name).deg for s in sky]) for name in ("ra", "dec"))
    assert len(of) > 1.2 * len(set(of.tolist())) and np.bincount(of).max() == 3

    kept = once([footprint(header, SHAPE) for header in headers], tile, ra, dec, WITHIN)
    np.testing.assert_array_equal(np.sort(of[kept]), np.unique(of))

    # And in a tile in which no other lies deeper by more than the errors.
    for source, number in zip(of[kept], tile[kept], strict=True):
        depth = []
        for header in headers:
            x, y = WCS(header).all_world2pix(
                true.ra.deg[source], true.dec.deg[source], 0, quiet=True
            )
            depth.append(0.2 * min(x, SHAPE[1] - 1 - x, y, SHAPE[0] - 1 - y))
        assert depth[number] > max(depth) - 4 * error - 1e-6
