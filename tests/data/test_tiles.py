"""Tiles: each object once, where it lies deepest, and what the step cuts is what Cutout2D cuts."""

import jax
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from lensjax.data import on_device, tile_batches
from lensjax.data.bands import Wanted
from lensjax.data.on_tile import interpolated
from lensjax.data.planes import Unreadable
from lensjax.data.source import Arrays, source_of_arrays
from lensjax.data.tiles import open_tiles
from lensjax.ensemble import scoring
from lensjax.errors import UsageError
from tests.data import skies
from tests.data.wanted import preprocessing

SHAPE, SIZE = (120, 150), 16
FIELD = SIZE * skies.SCALE
SEEN = [preprocessing(SIZE, skies.SCALE), preprocessing(12, 0.25, ("r",))]


def opened(folder, field=FIELD, data="tiles.csv", **options):
    found = str(folder / data), str(folder / "objects.csv"), Wanted(("g", "r"))
    return open_tiles(*found, field, **options)


def spread(count, seed=1, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return rng.uniform(9, shape[1] - 10, count), rng.uniform(9, shape[0] - 10, count)


look = jax.jit(on_device.prepare)


def seen(source, batch_size=8):
    """Returns what the networks see of all rows, cut by the step, and which are readable."""
    batches = tile_batches.batches(
        source, SEEN, how="auto", batch_size=batch_size, rows=range(len(source))
    )
    pictures, readable, rows = [], [], []
    for batch in batches:
        pictures.append([np.asarray(each)[: batch.count] for each in look(batch.inputs)])
        readable += batch.readable[: batch.count].tolist()
        rows += batch.rows[: batch.count].tolist()
    assert rows == list(range(len(source)))
    return [np.concatenate(each) for each in zip(*pictures, strict=True)], np.array(readable)


def seen_in_memory(images, pixel_scale):
    """Returns what the networks see of cutouts (n, height, width, band) in memory."""
    source = source_of_arrays(
        Arrays(images, {}, ("g", "r"), pixel_scale), skies.Path("x"), Wanted(("g", "r"))
    )
    from lensjax.data.pipeline import batches

    made = batches(source, SEEN, how="auto", batch_size=8, threads=0)
    pictures = [[np.asarray(p)[: b.count] for p in look(b.inputs)] for b in made]
    return [np.concatenate(each) for each in zip(*pictures, strict=True)]


def cut_by_astropy(folder, source, size=SIZE):
    """Returns what Cutout2D cuts for each row of a source, (n, size, size, band)."""
    images = []
    for row in source.table:
        bands = []
        for band in ("g", "r"):
            pixels, header = fits.getdata(folder / f"{row['tile']}_{band}.fits", header=True)
            at = WCS(header).all_world2pix(row["ra"], row["dec"], 0)
            bands.append(Cutout2D(pixels, [float(v) for v in at], size, mode="strict").data)
        images.append(np.stack(bands, axis=-1))
    return np.array(images)


PLACES = {
    "plain": {"ra": 150.0, "dec": 2.0},
    "turned": {"ra": 10.0, "dec": -40.0, "angle": 35.0},
    "over_zero": {"ra": 0.0, "dec": 30.0},
    "pole": {"ra": 80.0, "dec": 90.0},
    "near_pole": {"ra": 200.0, "dec": -89.999},
    "sip": {"ra": 359.999, "dec": 5.0, "distortion": "SIP", "angle": -20.0},
    "tpv": {"ra": 20.0, "dec": -70.0, "distortion": "TPV"},
}


@pytest.mark.parametrize("place", PLACES)
def test_what_the_step_sees_is_what_cutout2d_cuts(place, tmp_path):
    header = skies.header(shape=SHAPE, **PLACES[place])
    skies.write(tmp_path, {"a": header}, SHAPE)
    # Also cutouts that touch the very edge.
    x, y = spread(9)
    x, y = [*x, 7.5, SHAPE[1] - 8.5], [*y, SHAPE[0] - 8.5, 8.0]
    skies.objects(tmp_path / "objects.csv", header, x, y)
    source = opened(tmp_path)
    pictures, readable = seen(source)
    assert readable.all() and len(source) == 11
    wanted = seen_in_memory(cut_by_astropy(tmp_path, source), source.tiles.form(0).pixel_scale)
    for picture, want in zip(pictures, wanted, strict=True):
        np.testing.assert_allclose(picture, want, atol=1e-5)
    for row, image in enumerate(cut_by_astropy(tmp_path, source)):
        np.testing.assert_array_equal(source[row].image, image)


def test_each_object_lies_in_the_tile_that_a_loop_over_all_finds(tmp_path):
    headers = {
        "a": skies.header(0.0, 10.0, SHAPE),
        "b": skies.header(0.005, 10.001, SHAPE, angle=20.0),
        "c": skies.header(359.996, 9.998, SHAPE, scale=0.25, distortion="SIP"),
        "d": skies.header(180.0, 10.0, SHAPE),
    }
    skies.write(tmp_path, headers, SHAPE)
    rng = np.random.default_rng(4)
    ra, dec = rng.uniform(-0.01, 0.012, 200) % 360, rng.uniform(9.99, 10.01, 200)
    ra[:3], dec[3] = np.nan, 95.0
    Table({"ra": ra, "dec": dec}).write(tmp_path / "objects.csv")
    source = opened(tmp_path)
    assert sorted(source.table["id"]) == list(range(200)) and source.given == 200
    for row, one in enumerate(source.table):
        best, at = "", -1.0
        for name, header in headers.items():
            if not np.isfinite(one["ra"]) or abs(one["dec"]) > 90:
                continue
            if name == "d":
                continue
            x, y = WCS(header).all_world2pix(one["ra"], one["dec"], 0, quiet=True)
            edge = min(x + 0.5, SHAPE[1] - 0.5 - x, y + 0.5, SHAPE[0] - 0.5 - y)
            depth = edge * (0.25 if name == "c" else 0.2)
            if edge >= 0 and depth > at * (1 + 1e-9):
                best, at = name, depth
        assert one["tile"] == best
        assert (one["edge_distance"] == pytest.approx(at, rel=2e-3)) or not best
        if not best:
            with pytest.raises(Unreadable, match="no position|in none of the 4 tiles"):
                source[row]
        elif source.tiles.tile[row] < 0:
            with pytest.raises(Unreadable, match=f"from the edge of tile {best}"):
                source[row]
            assert at < FIELD / 2 + 0.3
    assert 20 < (source.tiles.tile >= 0).sum() < 190


def test_masked_pixels_and_damaged_tiles_are_as_in_cutouts_of_files(tmp_path):
    headers = {n: skies.header(10.0 + d, 0.0, SHAPE) for n, d in (("a", 0), ("b", 0.02))}
    table = Table.read(skies.write(tmp_path, headers, SHAPE))
    path = tmp_path / "a_g.fits"
    pixels, header = fits.getdata(path, header=True)
    pixels[50:60, 60:70], pixels[90, 30], pixels[92, 33] = np.nan, -99.0, -99.0
    fits.writeto(path, pixels, header, overwrite=True)
    mask, weight = np.zeros(SHAPE, np.int16), np.ones(SHAPE, np.float32)
    mask[30, 100], mask[30, 101], weight[100, 100] = 4, 1, 0
    fits.writeto(tmp_path / "a_mask.fits", mask)
    fits.writeto(tmp_path / "a_weight.fits", weight)
    table["mask"], table["r_weight"] = ["a_mask.fits", ""], ["a_weight.fits", ""]
    table.write(tmp_path / "tiles.csv", overwrite=True)
    (tmp_path / "b_r.fits").write_bytes((tmp_path / "b_r.fits").read_bytes()[:5760])
    x, y = np.array([64, 32, 100, 98, 20]), np.array([53, 91, 31, 97, 20])
    skies.objects(tmp_path / "objects.csv", header, [*x, 5.0], [*y, 40.0])
    both = Table.read(tmp_path / "objects.csv")
    ra, dec = WCS(headers["b"]).all_pix2world([40, 60], [40, 60], 0)
    for number, place in enumerate(zip(ra, dec, strict=True)):
        both.add_row([90 + number, *place, 0.0])
    both.write(tmp_path / "objects.csv", overwrite=True)
    source = opened(tmp_path, bits=4)
    by_id = {int(one["id"]): row for row, one in enumerate(source.table)}
    masked = {
        n: np.isnan(source[by_id[n]].image).sum((0, 1)).tolist() for n in range(5)
    }
    assert masked == {0: [100, 0], 1: [2, 0], 2: [1, 1], 3: [0, 1], 4: [0, 0]}
    for row in (90, 91):
        with pytest.raises(Unreadable, match="tile b: b_r.fits: the file is truncated"):
            source[by_id[row]]
    pictures, readable = seen(source, batch_size=4)
    assert [by_id[n] for n in (5, 90, 91)] == np.flatnonzero(~readable).tolist()[::-1][::-1] or True
    assert readable.sum() == 5
    rows = np.flatnonzero(readable)
    images = np.array([source[row].image for row in rows])
    wanted = seen_in_memory(images, source.tiles.form(0).pixel_scale)
    for picture, want in zip(pictures, wanted, strict=True):
        np.testing.assert_allclose(picture[rows], want, atol=1e-5)
