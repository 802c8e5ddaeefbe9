"""Cells and area are those of another library and of closed forms, at the poles and at RA 0 too."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from mocpy import MOC

from lensjax import coverage
from lensjax.data.preprocess import Preprocessing


def test_cells_are_those_of_another_library():
    """mocpy's are of CDS's library, in Rust; ours of astropy-healpix, in C."""
    rng = np.random.default_rng(0)
    ra = np.append(rng.uniform(0, 360, 500), [0.0, 359.9999999, 12.0, 12.0])
    dec = np.append(np.degrees(np.arcsin(rng.uniform(-1, 1, 500))), [0.0, 0.0, 89.9999, -89.9999])
    for order in (0, 5, 29):
        found = coverage.healpix(ra, dec, order)
        for place in range(0, ra.size, 17):
            lon, lat = ra[place : place + 1] * u.deg, dec[place : place + 1] * u.deg
            (cell,) = MOC.from_lonlat(lon=lon, lat=lat, max_norder=order).flatten()
            assert found[place] == cell and found.dtype == np.int64


def test_corners_of_base_cells_in_closed_form():
    """Base cells 0 to 3 lie around the north pole, 8 to 11 around the south pole."""
    ra = np.array([45.0, 135.0, 225.0, 315.0])
    assert coverage.healpix(ra, np.full(4, 60.0), 0).tolist() == [0, 1, 2, 3]
    assert coverage.healpix(ra, np.full(4, -60.0), 0).tolist() == [8, 9, 10, 11]
    assert coverage.healpix(ra - 45, np.zeros(4), 0).tolist() == [4, 5, 6, 7]


def test_what_is_no_position_has_no_cell():
    cells = coverage.healpix(np.array([10, np.nan, 20, 30.0]), np.array([1, 2, 95, np.nan]))
    assert np.ma.getmaskarray(cells).tolist() == [False, True, True, True]


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0, -60.0), (77.0, 90.0), (10, -89.999)])
def test_the_area_is_that_of_the_square_and_holds_what_lies_in_it(ra, dec):
    width = 20.0
    square = np.array([ra]), np.array([dec]), np.array([width])
    for moc, most in (
        (coverage.searched(*square, order=21), 1.02),
        (coverage.searched(*square), 1.1),
    ):
        square_degrees = moc.sky_fraction * 4 * np.pi * np.degrees(1) ** 2
        assert 1 <= square_degrees / (width / 3600) ** 2 < most
    centre = u.Quantity([ra, dec], u.deg)
    assert moc.contains_lonlat(*np.atleast_2d(centre).T).all()
    if abs(dec) < 80:
        rng = np.random.default_rng(1)
        north = rng.uniform(-0.499, 0.499, 300) * width / 3600
        east = rng.uniform(-0.499, 0.499, 300) * width / 3600 / np.cos(np.radians(dec + north))
        assert moc.contains_lonlat(((ra + east) % 360) * u.deg, (dec + north) * u.deg).all()


def test_many_squares_take_larger_cells_and_overlaps_count_once(monkeypatch):
    ra, dec = np.full(1000, 30.0), np.full(1000, -5.0)
    ra[500:] += 1
    monkeypatch.setattr(coverage, "MOST_POINTS", 400_000)
    monkeypatch.setattr(coverage, "_PIECE", 10_000)
    moc = coverage.searched(ra, dec, np.full(1000, 12.0))
    area = moc.sky_fraction * 4 * np.pi * np.degrees(1) ** 2
    assert 1 <= area / (2 * (12 / 3600) ** 2) < 1.6
    cell = np.degrees(np.sqrt(np.pi / 3)) * 3600 / 2**moc.max_order
    assert 12 / 10 <= cell < 2 * 12 / 10


def test_widths_come_from_the_member_that_is_furthest():
    """geometry of 5 and 40 arcsec for members of 10 and 20: 5/20 and 40/10 are furthest from 1."""
    shared = {"bands": ("g",), "stretch": "none", "softening": 1.0, "mean": (0,), "std": (1,)}
    members = [Preprocessing(input_size=size, pixel_scale=0.2, **shared) for size in (50, 100)]
    found = coverage.widths(np.array([5 / 20, 40 / 10, np.nan]), members)
    np.testing.assert_allclose(found, [5, 40, 10])
    unknown = [Preprocessing(input_size=50, pixel_scale=None, **shared)]
    assert np.isnan(coverage.widths(np.array([1.0]), unknown)).all()


def test_both_files_hold_the_same_area_and_nothing_is_written_of_nothing(tmp_path):
    nothing = np.array([np.nan])
    coverage.write_searched(tmp_path, coverage.searched(nothing, nothing, nothing))
    assert not list(tmp_path.iterdir())
    ra, dec = np.array([359.9999, 0.0001, np.nan]), np.array([0.0, 0.0, 3.0])
    coverage.write_searched(tmp_path, coverage.searched(ra, dec, np.full(3, 10.0)))
    first = MOC.load(str(tmp_path / "searched.moc.fits"), "fits")
    assert first == MOC.load(str(tmp_path / "searched.moc.json"), "json") and not first.empty()
    assert fits.getheader(tmp_path / "searched.moc.fits", 1)["MOCVERS"] == "2.0"
