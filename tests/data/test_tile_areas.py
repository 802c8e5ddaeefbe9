"""The area that is searched is where an object is scored, as the tiles' world coordinates say."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table
from astropy.wcs import WCS

from lensjax.data import tile_areas
from lensjax.data.footprints import footprint
from tests.data import skies
from tests.data.test_tiles import FIELD, PLACES, SHAPE, opened


def square_degrees(moc) -> float:
    return moc.sky_fraction * 4 * np.pi * np.degrees(1) ** 2


def holds(moc, ra, dec) -> np.ndarray:
    return moc.contains_lonlat(ra % 360 * u.deg, dec * u.deg)


@pytest.mark.parametrize("place", PLACES)
def test_an_object_is_in_the_area_where_it_would_be_scored(place, tmp_path):
    """Many objects in and around two tiles, with and without a distortion, at RA 0 and the poles:
    the area holds those that are scored, and few others, which lie at its edge."""
    one = dict(PLACES[place])
    ra, dec = WCS(skies.header(shape=SHAPE, **one)).all_pix2world([[100.0, 70.0]], 0)[0]
    two = one | {"ra": ra, "dec": dec, "angle": 50.0}
    headers = {n: skies.header(shape=SHAPE, **s) for n, s in (("a", one), ("b", two))}
    skies.write(tmp_path, headers, SHAPE)
    x, y = np.random.default_rng(0).uniform(-20, SHAPE[1] + 20, (2, 20_000))
    places = np.hstack([WCS(header).all_pix2world(x, y, 0) for header in headers.values()])
    Table(dict(zip(("ra", "dec"), places, strict=True))).write(tmp_path / "objects.csv")
    source = opened(tmp_path)
    scored = source.tiles.tile >= 0
    moc = tile_areas.searched(source.tiles, scored)
    found = holds(moc, *source.places)
    assert found[scored].all() and 0.3 < scored.mean() < 0.9
    assert (found & ~scored).sum() < 0.03 * scored.sum()


def test_the_area_of_a_tile_is_that_of_the_pixels_in_which_a_cutout_fits(tmp_path):
    """In closed form: (height - size + 1) x (width - size + 1) pixels of 0.2 arcsec."""
    header = skies.header(0.0, 30.0, SHAPE, angle=10.0)
    skies.write(tmp_path, {"a": header}, SHAPE)
    skies.objects(tmp_path / "objects.csv", header, [60.0], [60.0])
    tiles = opened(tmp_path).tiles
    area = square_degrees(tile_areas.searched(tiles, np.array([True])))
    size = round(FIELD / 0.2)
    exact = (SHAPE[0] - size + 1) * (SHAPE[1] - size + 1) * (0.2 / 3600) ** 2
    assert 1 <= area / exact < 1.01
    covered = square_degrees(tile_areas.covered([footprint(header, SHAPE)]))
    assert 1 <= covered / (SHAPE[0] * SHAPE[1] * (0.2 / 3600) ** 2) < 1.1


def test_tiles_that_cannot_be_read_or_were_not_are_left_out(tmp_path, monkeypatch):
    headers = {n: skies.header(10.0 * d, 0.0, SHAPE) for d, n in enumerate("abc", start=1)}
    skies.write(tmp_path, headers, SHAPE)
    (tmp_path / "a_g.fits").unlink()
    ra, dec = np.hstack(
        [WCS(h).all_pix2world([60.0, 70.0], [50.0, 60.0], 0) for h in headers.values()]
    )
    Table({"ra": ra[:4], "dec": dec[:4]}).write(tmp_path / "objects.csv")
    tiles = opened(tmp_path).tiles
    assert tiles.tile.tolist() == [1, 1, -1, -1]
    one, two = (tile_areas.searched(tiles, tiles.tile == held) for held in (5, 1))
    assert holds(one, ra, dec).tolist() == [False] * 4 + [True] * 2
    assert holds(two, ra, dec).tolist() == [False] * 2 + [True] * 4
    # Many tiles take larger cells.
    monkeypatch.setattr(tile_areas, "MOST_CELLS", 100)
    assert tile_areas.searched(tiles, tiles.tile == 1).max_order < two.max_order


def test_a_tile_beyond_its_projection_may_cover_all_of_the_sky():
    """150 degrees of an orthographic projection: its corners are nowhere."""
    shape = (60_000, 60_000)
    header = skies.header(10.0, 20.0, shape, scale=9.0)
    header["CTYPE1"], header["CTYPE2"] = "RA---SIN", "DEC--SIN"
    tiles = [footprint(header, shape), footprint(skies.header(10.0, 20.0, SHAPE), SHAPE)]
    assert tile_areas.covered(tiles).sky_fraction == 1
    assert tile_areas.covered(tiles[1:]).sky_fraction < 2e-9
    assert tile_areas.covered([]).empty()
