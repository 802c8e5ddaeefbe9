"""Tiles: each object once, where it lies deepest, and what the step cuts is what Cutout2D cuts."""

import gzip
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from lensjax.data import on_device, tile_batches
from lensjax.data.bands import Wanted
from lensjax.data.objects_in_tiles import open_tiles
from lensjax.data.on_tile import interpolated
from lensjax.data.pipeline import taken
from lensjax.data.planes import Unreadable
from lensjax.data.source import Arrays, source_of_arrays
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
    """Returns what the networks see of all rows, cut by the step, and which are readable; the same
    as they see of cutouts that are taken from a batch."""
    batches = tile_batches.batches(
        source, SEEN, how="auto", batch_size=batch_size, rows=range(len(source))
    )
    pictures, readable, rows = [], [], []
    for batch in batches:
        if batch.readable.any():
            found = look(batch.inputs)
            some = np.resize(np.flatnonzero(batch.readable), batch_size)
            for picture, again in zip(found, look(taken(batch, some).inputs), strict=True):
                np.testing.assert_allclose(picture[some], again, atol=1e-4)
        else:  # of these nothing is computed
            found = [
                np.zeros((batch.count, p.input_size, p.input_size, len(p.bands))) for p in SEEN
            ]
        pictures.append([np.asarray(each)[: batch.count] for each in found])
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
    images = skies.cutouts(tmp_path, source.table, SIZE)
    wanted = seen_in_memory(images, source.tiles.form(0).pixel_scale)
    for picture, want in zip(pictures, wanted, strict=True):
        np.testing.assert_allclose(picture, want, atol=1e-5)
    for row, image in enumerate(images):
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


def test_paths_are_the_sections_of_files_and_reasons_are_few(tmp_path):
    headers = {n: skies.header(10.0, d, SHAPE) for n, d in (("a", 0.0), ("b", 1.0), ("c", 2.0))}
    skies.write(tmp_path, headers, SHAPE)
    # Of the middle tile there are no objects.
    tables = [
        Table.read(skies.objects(tmp_path / f"{n}.csv", headers[n], *spread(60, seed)))
        for seed, n in enumerate("ca")
    ]
    both = vstack(tables)
    both["ra"][7] = np.nan
    both.write(tmp_path / "objects.csv")
    source = opened(tmp_path, field=25 * skies.SCALE)
    held = source.tiles.tile >= 0
    for row in np.flatnonzero(held).tolist():
        name, _, section = source.table["path"][row].rpartition("[")
        x, y = (slice(int(a) - 1, int(b)) for a, b in
                (of.split(":") for of in section.rstrip("]").split(",")))  # fmt: skip
        np.testing.assert_array_equal(source[row].image[..., 0], fits.getdata(name)[y, x])
        assert Path(name).name == f"{source.table['tile'][row]}_g.fits"
    assert set(source.table["path"][~held]) == {""}
    assert set(source.tiles.reason[held]) == {""}
    assert set(source.tiles.reason[~held]) == {
        "no position",
        "less than 2.5 arcsec from the edge of tile a",
        "less than 2.5 arcsec from the edge of tile c",
    }


def test_masked_pixels_and_damaged_tiles_are_as_in_cutouts_of_files(tmp_path):
    headers = {
        n: skies.header(10.0 + d, 0.0, SHAPE) for n, d in zip("abc", (0, 0.02, 0.04), strict=True)
    }
    table = Table.read(skies.write(tmp_path, headers, SHAPE))
    path = tmp_path / "a_g.fits"
    pixels, header = fits.getdata(path, header=True)
    pixels[50:60, 60:70], pixels[90, 30], pixels[92, 33] = np.nan, -99.0, -99.0
    fits.writeto(path, pixels, header, overwrite=True)
    mask, weight = np.zeros(SHAPE, np.int16), np.ones(SHAPE, np.float32)
    mask[30, 100], mask[30, 101], weight[100, 100] = 4, 1, 0
    fits.writeto(tmp_path / "a_mask.fits", mask)
    fits.writeto(tmp_path / "a_weight.fits", weight)
    table["mask"], table["r_weight"] = ["a_mask.fits", "", ""], ["a_weight.fits", "", ""]
    table.write(tmp_path / "tiles.csv", overwrite=True)
    (tmp_path / "b_r.fits").write_bytes((tmp_path / "b_r.fits").read_bytes()[:5760])
    (tmp_path / "c_r.fits").unlink()
    x, y = np.array([64, 32, 100, 98, 20]), np.array([53, 91, 31, 97, 20])
    skies.objects(tmp_path / "objects.csv", header, [*x, 5.0], [*y, 40.0])
    both = Table.read(tmp_path / "objects.csv")
    for number, name in ((90, "b"), (91, "c")):
        ra, dec = WCS(headers[name]).all_pix2world(40, 60, 0)
        both.add_row([number, ra, dec, 0.0])
    both.write(tmp_path / "objects.csv", overwrite=True)
    source = opened(tmp_path, bits=4)
    by_id = {int(one["id"]): row for row, one in enumerate(source.table)}
    masked = {n: np.isnan(source[by_id[n]].image).sum((0, 1)).tolist() for n in range(5)}
    assert masked == {0: [100, 0], 1: [2, 0], 2: [1, 1], 3: [0, 1], 4: [0, 0]}
    for number, wrong in ((90, "tile b: b_r.fits: .*truncated"), (91, "tile c: .*no such file")):
        with pytest.raises(Unreadable, match=wrong):
            source[by_id[number]]
    pictures, readable = seen(source, batch_size=4)
    assert {by_id[n] for n in (5, 90, 91)} == set(np.flatnonzero(~readable).tolist())
    rows = np.flatnonzero(readable)
    images = np.array([source[row].image for row in rows])
    wanted = seen_in_memory(images, source.tiles.form(0).pixel_scale)
    for picture, want in zip(pictures, wanted, strict=True):
        np.testing.assert_allclose(picture[rows], want, atol=1e-5)


def test_interpolation_of_the_step_and_of_the_host_is_that_of_scipy():
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(5, 30, 30)).astype(np.float32)
    angles, zoom = rng.uniform(0, 2 * np.pi, 5), rng.uniform(0.4, 1.0, 5)
    maps = np.empty((5, 2, 3))
    for number, (angle, scale) in enumerate(zip(angles, zoom, strict=True)):
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        maps[number] = np.column_stack([turn, [14.3, 15.1] - turn @ [7.5, 7.5]])
    got = jax.jit(interpolated, static_argnums=2)(regions, maps.astype(np.float32), 16)
    grid = np.mgrid[:16, :16]
    for number in range(5):
        at = np.einsum("kc,chw->khw", maps[number, :, :2], grid) + maps[number, :, 2, None, None]
        want = map_coordinates(regions[number].astype(np.float64), at, order=1)
        np.testing.assert_allclose(got[number], want, atol=2e-5)


def smooth(header, shape):
    """Returns a picture that is a function of the sky, so that all grids show the same."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ra, dec = WCS(header).all_pix2world(columns, rows, 0)
    east, north = (ra - 50.0) * np.cos(np.radians(20.0)) * 3600, (dec - 20.0) * 3600
    return (100 + 3 * east + 10 * np.sin(north / 2) + east * north).astype(np.float32)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_bands_of_other_grids_and_north_up_show_the_sky_where_it_is(on_cpu, tmp_path, monkeypatch):
    own = skies.header(50.0, 20.0, SHAPE, angle=30.0)
    other = skies.header(50.0005, 20.0002, (60, 70), scale=0.5, angle=100.0)
    fits.writeto(tmp_path / "a_g.fits", smooth(own, SHAPE), own)
    fits.writeto(tmp_path / "a_r.fits", smooth(other, (60, 70)), other)
    (tmp_path / "tiles.csv").write_text("tile,g,r\na,a_g.fits,a_r.fits\n")
    skies.objects(tmp_path / "objects.csv", own, [70.3, 90.8, 60.0], [50.6, 66.1, 70.4])
    if not on_cpu:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    source = opened(tmp_path)
    assert source.tiles.form(0).sheets.regions[0] == 0 < source.tiles.form(0).sheets.regions[1]
    for row in range(3):
        image = source[row].image
        assert np.abs(image[..., 0] - image[..., 1]).max() < 0.2
    turned = opened(tmp_path, north_up=True)
    for row, one in enumerate(turned.table):
        offsets = (np.arange(SIZE) - (SIZE - 1) / 2) * 0.2
        east = (one["ra"] - 50.0) * np.cos(np.radians(20.0)) * 3600 - offsets
        north = (one["dec"] - 20.0) * 3600 + offsets[:, None]
        want = 100 + 3 * east + 10 * np.sin(north / 2) + east * north
        np.testing.assert_allclose(turned[row].image[..., 0], want, atol=0.1)
        np.testing.assert_allclose(turned[row].image[..., 1], want, atol=0.3)
    for each in (source, turned):
        pictures, readable = seen(each)
        assert readable.all()
        wanted = seen_in_memory(np.array([each[row].image for row in range(3)]), 0.2)
        options = {"how": "auto", "batch_size": 3, "rows": range(3), "as_images": True}
        (cut,) = tile_batches.batches(each, SEEN, **options)
        assert not cut.inputs.sheets and cut.cut is None and len(cut.inputs.brightness) == len(SEEN)
        for picture, of_cut, want in zip(pictures, look(cut.inputs), wanted, strict=True):
            np.testing.assert_allclose(picture, want, atol=2e-3)
            np.testing.assert_allclose(of_cut, want, atol=1e-5)


def test_parts_of_a_tile_types_and_compression_change_nothing(tmp_path):
    header = skies.header(10.0, 0.0, SHAPE)
    skies.write(tmp_path, {"a": header}, SHAPE)
    skies.objects(tmp_path / "objects.csv", header, *spread(30))
    whole = opened(tmp_path)
    assert len(whole.tiles.sheets) == 1
    pictures, _ = seen(whole)
    in_parts = opened(tmp_path, most_bytes=30 * 8 * SHAPE[1])
    assert len(in_parts.tiles.sheets) > 3
    assert {s.shape for s in in_parts.tiles.read(in_parts.tiles.sheets[1]).sheet.planes} == {
        (30, SHAPE[1])
    }
    for one, other in zip(pictures, seen(in_parts, batch_size=5)[0], strict=True):
        np.testing.assert_array_equal(one, other)
    for band in ("g", "r"):
        pixels = fits.getdata(tmp_path / f"a_{band}.fits")
        made = fits.PrimaryHDU(pixels, header)
        made.scale("int16", bscale=0.01, bzero=20.0)
        made.writeto(tmp_path / f"i_{band}.fits")
        scaled = fits.getdata(tmp_path / f"i_{band}.fits")
        hdu = fits.CompImageHDU(scaled, header, compression_type="GZIP_2", quantize_level=0)
        hdu.writeto(tmp_path / f"z_{band}.fits.fz")
    for name, files in (("i", "{tile}_{band}.fits"), ("z", "{tile}_{band}.fits.fz")):
        (tmp_path / f"{name}.csv").write_text(
            "tile,g,r\n" + ",".join([name, *(files.format(tile=name, band=b) for b in "gr")])
        )
    integers, floats = opened(tmp_path, data="i.csv"), opened(tmp_path, data="z.csv")
    assert integers.tiles.form(0).sheets.dtypes == ("int16", "int16")
    for one, other in zip(seen(integers)[0], seen(floats)[0], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_tiles_at_addresses_are_those_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSJAX_CACHE", str(tmp_path / "cache"))
    header = skies.header(10.0, 0.0, SHAPE)
    skies.write(tmp_path, {"a": header}, SHAPE)
    skies.objects(tmp_path / "objects.csv", header, *spread(3))
    remote = fsspec.filesystem("memory")
    for band in ("g", "r"):
        content = (tmp_path / f"a_{band}.fits").read_bytes()
        remote.pipe(f"/tiles/a_{band}.fits", content)
        remote.pipe(f"/tiles/a_{band}.fits.gz", gzip.compress(content))
    here = opened(tmp_path)
    (tmp_path / "there.csv").write_text(
        "tile,g,r\na,memory://tiles/a_g.fits,memory://tiles/a_r.fits.gz\n"
    )
    there = opened(tmp_path, data="there.csv")
    for one, other in zip(seen(here)[0], seen(there)[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_tiles_are_found_by_template_and_in_a_folder(tmp_path):
    header = skies.header(10.0, 0.0, SHAPE)
    skies.write(tmp_path, {"a": header}, SHAPE)
    skies.objects(tmp_path / "objects.csv", header, *spread(3))
    by_table = opened(tmp_path)
    for data in ("{tile}_{band}.fits", "."):
        other = opened(tmp_path, data=data)
        assert other.table["path"].tolist() == by_table.table["path"].tolist()
        assert other.bands == ("g", "r") and other.tiles.names == ("a",)


def test_a_tile_is_named_by_its_file_and_what_it_lacks_by_its_band(tmp_path):
    header = skies.header(10.0, 0.0, SHAPE)
    skies.write(tmp_path, {"a": header, "b": skies.header(20.0, 0.0, SHAPE)}, SHAPE)
    skies.objects(tmp_path / "objects.csv", header, *spread(3))
    assert opened(tmp_path, data="a_{band}.fits").tiles.names == ("a_g",)
    (tmp_path / "tiles.csv").write_text("tile,g,r\na,a_g.fits,\nb,b_g.fits,b_r.fits\n")
    lacking = opened(tmp_path)
    assert set(lacking.tiles.reason) == {"tile a: it has no file for r"}
    assert "tiles that cannot be read: 1 (tile a: it has no file for r)" in lacking.description


@pytest.mark.parametrize(
    ("table", "objects", "message"),
    [
        ("tile,g\na,a_g.fits", "ra,dec\n1,2", "the members need bands g, r"),
        ("tile,g,r\n", "ra,dec\n1,2", "no tile|bands"),
        ("tile,g,r\na,a_g.fits,a_r.fits", "x,dec\n1,2", "has no column ra"),
        ("tile,g,r\na,a_g.fits,a_r.fits", "ra,dec\n", "has no rows"),
    ],
)
def test_what_is_no_table_of_tiles_or_objects_is_refused(table, objects, message, tmp_path):
    (tmp_path / "tiles.csv").write_text(table)
    (tmp_path / "objects.csv").write_text(objects)
    with pytest.raises(UsageError, match=message):
        opened(tmp_path)


def test_one_program_for_tiles_of_all_shapes_and_few_padded_batches(tmp_path):
    places = {"a": 10.0, "b": 10.02, "c": 10.04, "d": 10.06}
    shapes = dict(zip(places, (SHAPE, (100, 150), (120, 110), SHAPE), strict=True))
    rows, columns = [], {"ra": [], "dec": []}
    for name, ra in places.items():
        header = skies.header(ra, 0.0, shapes[name])
        for band in ("g", "r"):
            pixels = np.random.default_rng(len(rows)).normal(size=shapes[name])
            fits.writeto(tmp_path / f"{name}_{band}.fits", pixels.astype(np.float32), header)
        rows.append(f"{name},{name}_g.fits,{name}_r.fits")
        found = WCS(header).all_pix2world(*spread(13, len(rows), (90, 100)), 0)
        for column, values in zip(columns.values(), found, strict=True):
            column += values.tolist()
    (tmp_path / "tiles.csv").write_text("\n".join(["tile,g,r", *rows]))
    Table(columns).write(tmp_path / "objects.csv")
    source = opened(tmp_path)
    made = list(
        tile_batches.batches(source, SEEN, how="auto", batch_size=8, rows=range(len(source)))
    )
    assert [batch.count for batch in made] == [8] * 6 + [4]
    traced = []
    program = jax.jit(lambda inputs: traced.append(inputs) or on_device.prepare(inputs))
    for batch in made:
        program(batch.inputs)
    assert len(traced) == 1
    spec = scoring.input_spec(source, SEEN, "auto")
    assert jax.tree.structure(spec.blank(8)) == jax.tree.structure(made[0].inputs)
    for one, other in zip(*map(jax.tree.leaves, (spec.blank(8), made[0].inputs)), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype


def test_a_tile_that_cannot_be_decoded_is_rejected_when_its_turn_comes(tmp_path):
    headers = {n: skies.header(10.0 + d, 0.0, SHAPE) for n, d in zip("ab", (0, 0.02), strict=True)}
    skies.write(tmp_path, headers, SHAPE)
    places = [WCS(header).all_pix2world(*spread(5), 0) for header in headers.values()]
    ra, dec = np.hstack(places)
    Table({"ra": ra, "dec": dec}).write(tmp_path / "objects.csv")
    packed = tmp_path / "a_g.fits.fz"
    fits.CompImageHDU(fits.getdata(tmp_path / "a_g.fits"), headers["a"]).writeto(packed)
    content = bytearray(packed.read_bytes())
    content[-2880 * 3 :] = b"\xff" * (2880 * 3)
    packed.write_bytes(content)
    table = Table.read(tmp_path / "tiles.csv", format="csv")
    table["g"] = ["a_g.fits.fz", "b_g.fits"]
    table.write(tmp_path / "tiles.csv", overwrite=True)
    source = opened(tmp_path)
    made = list(
        tile_batches.batches(source, SEEN, how="auto", batch_size=4, rows=range(len(source)))
    )
    readable = np.concatenate([batch.readable[: batch.count] for batch in made])
    reasons = np.concatenate([batch.reasons[: batch.count] for batch in made])
    assert (readable == (source.table["tile"] == "b")).all()
    assert all(reason.startswith("tile a: a_g.fits.fz: ") for reason in reasons[~readable])
