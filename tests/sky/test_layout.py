"""Tiles lie side by side on the sky, and objects stand in them."""

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.wcs.utils import proj_plane_pixel_scales

from lensjax.errors import UsageError
from lensjax.sky.layout import Layout, place

LAYOUT = Layout(count=3, size=200, overlap=30, pixel_scale=0.2, centre=(359.999, 60.0))


def test_neighbours_share_the_overlap_and_each_is_tangent_in_its_middle():
    first, right, above = (LAYOUT.wcs(tile) for tile in range(3))
    corners = right.pixel_to_world([0, 0], [0, 199])
    np.testing.assert_allclose(first.world_to_pixel(corners), [[170, 170], [0, 199]], atol=0.05)
    np.testing.assert_allclose(
        first.world_to_pixel(above.pixel_to_world(0, 0)), (0, 170), atol=0.05
    )
    for wcs in (first, right, above):
        np.testing.assert_allclose(proj_plane_pixel_scales(wcs) * 3600, 0.2)
        # East is left of the middle, north above.
        middle, east, north = wcs.pixel_to_world([99.5, 98.5, 99.5], [99.5, 99.5, 100.5])
        assert middle.position_angle(east).deg == pytest.approx(90, abs=0.01)
        angle = middle.position_angle(north).wrap_at(180 * units.deg).deg
        assert angle == pytest.approx(0, abs=0.01)


def test_objects_stand_apart_in_a_tile_and_few_at_the_edge():
    sky = place(LAYOUT, 150, spacing=10, margin=16, seed=1)
    where = SkyCoord(*sky.T, unit="deg")
    _, nearest, _ = where.match_to_catalog_sky(where, nthneighbor=2)
    assert len(sky) == 150 and nearest.arcsec.min() > 0.999 * 10 * 0.2
    depth = LAYOUT.depths(sky).max(axis=0)
    assert depth.min() > 0 and 1 <= (depth < 16).sum() < 12
    np.testing.assert_array_equal(sky, place(LAYOUT, 150, spacing=10, margin=16, seed=1))
    assert (sky != place(LAYOUT, 150, spacing=10, margin=16, seed=2)).any()


def test_too_many_objects_are_one_line():
    with pytest.raises(UsageError, match="900 objects have no room in 3 tiles of 200 pixels"):
        place(LAYOUT, 900, spacing=20, margin=0, seed=0)
