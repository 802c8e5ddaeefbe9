"""The folder of tiles that simulate.py writes."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from lensjax.errors import UsageError
from lensjax.simulation import SimulateConfig, simulate_survey
from lensjax.sky import tile
from lensjax.tile_simulation import simulate_tiles

OPTIONS = SimulateConfig(
    survey="ground", size=32, tiles=2, tile_size=200, objects=30, prevalence=0.2, bands="i,g",
    shares="red=1", seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder, and that of the same sky compressed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile, "STAMPS", ((1.0, 16), (2.5, 16)))  # two programs, not four
        folders = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("compressed")
        for folder, compress in zip(folders, (False, True), strict=True):
            said = simulate_tiles(replace(OPTIONS, output=folder, compress=compress))
            assert "2 tiles of 200 x 200 pixels in i, g" in said and "6 of which are lenses" in said
        yield folders


def rows_of(path):
    return Table.read(path, format="parquet")


@pytest.mark.filterwarnings("ignore:No table")
def test_catalogue_and_truth_are_of_the_objects_in_the_tiles(written):
    folder = written[0]
    objects, truth = rows_of(folder / "objects.parquet"), rows_of(folder / "truth.parquet")
    tiles = Table.read(folder / "tiles.csv")
    assert tiles.colnames == ["tile", "i", "g"] and list(tiles["tile"]) == ["tile0", "tile1"]
    assert objects.colnames == ["id", "ra", "dec", "mag_i", "mag_g"]
    assert list(objects["id"]) == list(truth["id"]) and len(set(truth["id"])) == 30
    assert truth["label"].sum() == 6
    lens = truth["label"] == 1
    assert set(truth["kind"][lens]) == {"lens"} and set(truth["kind"][~lens]) == {"red"}
    assert (truth["arc_snr"][lens] > 14.9).all() and (truth["einstein_radius"][lens] > 0.5).all()
    assert np.isnan(truth["arc_snr"][~lens]).all()
    for name, files in zip(tiles["tile"], tiles["i"], strict=True):
        header = fits.getheader(folder / files)
        assert (header["BUNIT"], header["FILTER"], header["NAXIS1"]) == ("adu", "i", 200)
        here = truth["tile"] == name
        assert here.any()
        place = WCS(header).world_to_pixel_values(truth["ra"][here], truth["dec"][here])
        np.testing.assert_allclose(place, (truth["x"][here], truth["y"][here]), atol=1e-3)
        assert header["SEEING"] == pytest.approx(truth["seeing_i"][here][0], abs=1e-4)
    # A red galaxy alone, with noise, what stands beside it and what lies outside of the aperture.
    off = np.asarray(objects["mag_i"] - truth["lens_magnitude"])[~lens]
    assert np.isfinite(off).sum() > 15 and abs(np.nanmedian(off)) < 0.35


def test_the_same_seed_is_the_same_sky_and_compression_keeps_it(written):
    plain, packed = written
    for name in ("objects.parquet", "truth.parquet"):
        assert (plain / name).read_bytes() == (packed / name).read_bytes()
    assert sorted(path.name for path in packed.glob("*.fits*")) == sorted(
        f"tile{number}_{band}.fits.fz" for number in (0, 1) for band in "gi"
    )
    for name in ("tile0_g.fits", "tile1_i.fits"):
        with fits.open(plain / name) as one, fits.open(packed / f"{name}.fz") as other:
            header, image, stored = one[0].header, one[0].data, other[1].data
        assert image.dtype == np.dtype(">f4") and other[1].header["CRVAL1"] == header["CRVAL1"]
        assert np.abs(image - stored).max() < 0.1 * header["SKYSIGMA"]
        # The darkest pixels have no light but that of the sky.
        assert np.percentile(image, 5) == pytest.approx(-1.645 * header["SKYSIGMA"], rel=0.4)


@pytest.mark.parametrize(
    "changes, message",
    [({"tiles": 0}, "--tiles 0: at least 1"), ({"objects": 0}, "--objects 0"),
     ({"prevalence": 1.5}, "--prevalence 1.5"), ({"tile_size": 40}, "--tile-size 40"),
     ({"overlap": 150}, "--overlap 150"), ({"bands": "g,z"}, "no band 'z'"),
     ({"count": 9}, "--count is for cutouts"), ({"pack": True}, "--pack is for cutouts"),
     ({"objects": 3000}, "3000 objects have no room"), ({}, "--output is missing")],
)  # fmt: skip
def test_what_cannot_be_simulated_is_one_line(changes, message):
    with pytest.raises(UsageError, match=message) as raised:
        simulate_tiles(replace(OPTIONS, **changes))
    assert "\n" not in str(raised.value)


def test_options_of_tiles_need_tiles(tmp_path):
    with pytest.raises(UsageError, match="--tile-size is for tiles"):
        simulate_survey(SimulateConfig(output=tmp_path, tile_size=500))
