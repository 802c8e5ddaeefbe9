"""Objects found in tiles by the command: galaxies of known places once, no stars, and the scores
that a catalogue of them gets; tiles are searched once, whatever happens."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from lensjax import objects
from lensjax.cli import infer
from lensjax.data.designations import designations
from lensjax.data.formats.tables import read_table
from lensjax.errors import Interrupted, LensjaxError, UsageError
from lensjax.inference_config import InferenceConfig
from tests.data import skies

SHAPE, OVERLAP, TILES = (300, 340), 80, ("a", "b", "lost")
BANDS, ZERO_POINTS, COLOURS = ("g", "r", "i"), (30.0, 29.0, 27.5), (1.5, 0.7, 0.0)
GALAXY, STAR = 3.2, 1.6  # sigma, pixels


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Two tiles that share 80 columns, a third of which a file is missing, and the truth: galaxies
    and stars on a lattice, with magnitudes in i."""
    folder, rng = tmp_path_factory.mktemp("survey"), np.random.default_rng(0)
    wide = SHAPE[0], 2 * SHAPE[1] - OVERLAP
    whole = skies.header(10.0, 20.0, wide)
    y, x = (np.mgrid[:7, :15].reshape(2, -1) + 0.6) * 40 + rng.uniform(-4, 4, (2, 105))
    is_galaxy = rng.random(x.size) < 0.6
    sigma, mag = np.where(is_galaxy, GALAXY, STAR), rng.uniform(18.5, 20.0, x.size)
    ra, dec = WCS(whole).all_pix2world(x, y, 0)
    for band, zero_point, colour in zip(BANDS, ZERO_POINTS, COLOURS, strict=True):
        flux = 10 ** (-0.4 * (mag + colour - zero_point))
        sky = np.zeros((SHAPE[0], 3 * SHAPE[1] - 2 * OVERLAP))
        sky[:, : wide[1]] = skies.gaussians(wide, x, y, flux, sigma)
        for number, name in enumerate(TILES):
            first, header = number * (SHAPE[1] - OVERLAP), whole.copy()
            header["CRPIX1"], header["MAGZERO"] = header["CRPIX1"] - first, zero_point
            noise = rng.normal(0, 0.0007 * 10 ** (0.4 * (zero_point - 20.0 - colour)), SHAPE)
            tile = (sky[:, first : first + SHAPE[1]] + noise).astype(np.float32)
            fits.writeto(folder / f"{name}_{band}.fits", tile, header)
    (folder / "lost_r.fits").unlink()
    files = {band: [f"{name}_{band}.fits" for name in TILES] for band in BANDS}
    Table({"tile": TILES} | files).write(folder / "tiles.csv")
    Table({"ra": ra, "dec": dec, "x": x, "y": y, "mag": mag, "galaxy": is_galaxy}).write(
        folder / "truth.fits"
    )
    return folder


@pytest.fixture
def searched(monkeypatch):
    """The names of the tiles that are searched, as they are."""
    names, search = [], objects.search

    def noted(tile, how):
        names.append(tile.files.name)
        return search(tile, how)

    monkeypatch.setattr(objects, "search", noted)
    return names


def options(survey, members, output, *more):
    return (
        *("--data", survey / "tiles.csv", "--detect", "--checkpoints", members, "--output", output),
        *("--mc-samples", 2, "--batch-size", 8, *more),
    )


def test_galaxies_are_found_once_and_scored_as_a_catalogue_of_them_is(
    run, undrawn, members, survey, tmp_path
):
    ended = run(infer.main, *options(survey, members, tmp_path / "out", "--colour", "g-i"))
    assert ended.status == 0, ended.error
    assert "warning: not searched: tile lost: lost_r.fits: no such file" in ended.error
    found, truth = (
        read_table(tmp_path / "out" / "objects.parquet"),
        Table.read(survey / "truth.fits"),
    )
    galaxies = truth[truth["galaxy"]]
    sky = SkyCoord(found["ra"], found["dec"], unit="deg")
    nearest, apart, _ = sky.match_to_catalog_sky(
        SkyCoord(galaxies["ra"], galaxies["dec"], unit="deg")
    )
    assert len(found) == len(set(nearest.tolist())) == len(set(found["id"].tolist()))
    assert apart.arcsec.max() < 0.1 and len(found) == len(galaxies)
    true = galaxies[nearest]
    middle = SHAPE[1] - OVERLAP / 2
    depth = np.minimum(true["y"], SHAPE[0] - true["y"])
    clear = (np.abs(true["x"] - middle) > 1) & (depth > OVERLAP / 2)
    assert ((found["found_in"] == "b") == (true["x"] > middle))[clear].all() and clear.sum() > 30
    np.testing.assert_allclose(found["mag_i"], true["mag"], atol=0.05)
    np.testing.assert_allclose(found["g_i"], COLOURS[0], atol=0.05)
    half = np.sqrt(2 * np.log(2)) * GALAXY * skies.SCALE
    np.testing.assert_allclose(found["half_light_radius"], half, rtol=0.05)
    np.testing.assert_allclose(found["size_ratio"], GALAXY / STAR, rtol=0.06)

    record = json.loads((tmp_path / "out" / "run.json").read_text())
    about = record["detection"]
    assert about["found"] == about["selected"] + sum(about["left_out"].values())
    assert about["band"] == "i" and about["selected"] == len(found) == record["given"]
    assert about["left_out"]["smaller than 1.15 times the stars"] >= (~truth["galaxy"]).sum()
    assert list(about["not_searched"]) == ["lost"] and f"{len(found)} selected" in record["data"]

    listed = ("--catalogue", tmp_path / "out" / "objects.parquet", "--no-detect")
    more = (*listed, "--colour", "None")
    assert run(infer.main, *options(survey, members, tmp_path / "listed", *more)).status == 0
    for name in ("candidates.csv", "predictions.npz", "rejects.csv"):
        one, other = (tmp_path / folder / name for folder in ("out", "listed"))
        assert one.read_bytes() == other.read_bytes()


@pytest.fixture
def find(survey, tmp_path, searched):
    """Returns a function that finds the objects of a survey as a run with some options does, and
    gives the record of the search and the catalogue."""

    def found(folder=survey, output=tmp_path / "out", has_scores=False, **options):
        searched.clear()
        data = str(folder / "tiles.csv")
        config = InferenceConfig(detect=True, data=data, output=output, **options)
        config, record = objects.find(config, BANDS, has_scores)
        return record, read_table(Path(config.catalogue))

    return found


def test_selections_leave_out_what_they_say(find, survey):
    truth = Table.read(survey / "truth.fits")
    mag, is_galaxy = truth["mag"], truth["galaxy"]
    record, found = find(faintest=19.2)
    near = (np.abs(mag - 19.2) < 0.05).sum()
    assert abs(len(found) - (is_galaxy & (mag < 19.2)).sum()) <= near
    assert record["left_out"]["fainter than 19.2 in i"] >= (mag > 19.25).sum()
    assert len(find(faintest=None, least_size=0)[1]) == len(truth)
    record, found = find(faintest=None, least_size=0, least_snr=100, zero_point="25")
    assert 0 < len(found) < len(truth) and found["snr"].min() >= 100
    assert record["zero_points"] == {"i": [25.0, 25.0]}
    assert sum(record["left_out"].values()) == record["found"] - len(found)
    np.testing.assert_allclose(
        find(faintest=None, least_size=0, zero_point="1,2,27.5")[1]["mag_i"].min(),
        mag.min(),
        atol=0.05,
    )
    assert len(find(colour="g-i=1.0,2.0")[1]) == len(find(colour="g-i=,2")[1]) == is_galaxy.sum()
    with pytest.raises(LensjaxError, match="no objects to score: .* g-i outside -inf to 1,"):
        find(colour="g-i=,1.0")


def test_what_saturates_or_has_its_centre_masked_is_left_out(find, survey, tmp_path):
    folder, level = tmp_path / "survey", 40.0
    shutil.copytree(survey, folder)
    truth = Table.read(survey / "truth.fits")
    sigma = np.where(truth["galaxy"], GALAXY, STAR)
    peak = 10 ** (-0.4 * (truth["mag"] - ZERO_POINTS[2])) / (2 * np.pi * sigma**2)
    near = (np.abs(peak / (0.95 * level) - 1) < 0.05).sum()
    for name in ("a", "b"):
        fits.setval(folder / f"{name}_i.fits", "SATURATE", value=level)
    everything = {"faintest": None, "least_size": 0}
    record, found = find(folder, **everything)
    assert 20 < len(found) < 85 and abs(len(found) - (peak < 0.95 * level).sum()) <= near
    assert record["left_out"]["saturated in i"] >= (peak > level).sum()

    for name in ("a", "b"):
        pixels, header = fits.getdata(folder / f"{name}_i.fits", header=True)
        del header["SATURATE"]
        mask = (pixels > 0.95 * level).astype(np.uint8)
        fits.writeto(folder / f"{name}_mask.fits", mask)
        fits.writeto(folder / f"{name}_i.fits", pixels, header, overwrite=True)
    table = Table.read(folder / "tiles.csv")
    table["mask"] = [f"{name}_mask.fits" for name in TILES]
    table.write(folder / "tiles.csv", overwrite=True)
    record, found = find(folder, output=tmp_path / "masked", **everything)
    sky, centres = (SkyCoord(of["ra"], of["dec"], unit="deg") for of in (found, truth))
    kept = centres.match_to_catalog_sky(sky)[1].arcsec < 1
    # Of so many pixels the block at the centre is one.
    assert kept[peak < 0.9 * level].all() and not kept[peak > 2.5 * level].any()
    assert record["left_out"]["masked at the centre"] >= (peak > 2.5 * level).sum() > 0


def test_tiles_are_searched_once_whatever_happens(find, survey, tmp_path, monkeypatch, searched):
    folder, search = tmp_path / "survey", objects.search
    shutil.copytree(survey, folder)

    def ends(tile, how):
        if tile.files.name == "b":
            raise LensjaxError("the end")
        return search(tile, how)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "search", ends)
        with pytest.raises(LensjaxError, match="the end"):
            find(folder)
    assert searched == ["a"]
    whole, searched_now = find(folder)[1], searched.copy()
    assert searched_now == ["b"] and len(find(folder)[1]) == len(whole) and searched == []
    assert len(find(folder, faintest=19.5)[1]) < len(whole) and searched == []
    find(folder, detect_sigma=6)
    assert searched == ["a", "b"]
    (folder / "a_i.fits").touch()
    (folder / "b_g.fits").touch()  # which is not searched
    find(folder, detect_sigma=6)
    assert searched == ["a"]
    find(folder, detect_sigma=6, resume=False)
    assert searched == ["a", "b"]


def test_a_search_that_is_asked_to_stop_ends_between_tiles(find, monkeypatch, searched):
    with monkeypatch.context() as patch:
        stop = contextlib.nullcontext(lambda: bool(searched))
        patch.setattr(objects.runtime, "asked_to_stop", lambda: stop)
        with pytest.raises(Interrupted, match="stopped with 1 of 3 tiles not searched"):
            find()
    find()
    assert searched == ["b"]


def test_a_tile_that_cannot_be_decoded_is_left_out(find, survey, tmp_path):
    folder = tmp_path / "survey"
    shutil.copytree(survey, folder)
    pixels, header = fits.getdata(folder / "b_i.fits", header=True)
    packed = folder / "b_i.fits.fz"
    fits.CompImageHDU(pixels, header).writeto(packed)
    content = bytearray(packed.read_bytes())
    content[-2880 * 3 :] = b"\xff" * (2880 * 3)
    packed.write_bytes(content)
    table = (folder / "tiles.csv").read_text().replace("b_i.fits", packed.name)
    (folder / "tiles.csv").write_text(table)
    record, found = find(folder)
    assert record["not_searched"]["b"].startswith("tile b: b_i.fits.fz: ")
    # What only lies deeper in the other tile is found in this one.
    assert set(found["found_in"]) == {"a"} and "found deeper" not in str(record["left_out"])


def test_parts_share_the_tiles_and_find_the_same(find, survey, tmp_path, monkeypatch, searched):
    whole = (find()[1], searched.copy())[0]
    # Another process is at the first tile, and has not done it when its turn comes again.
    locked = objects.locked
    monkeypatch.setattr(
        objects,
        "locked",
        lambda lock, start, count, wait=False: (
            (start or wait) and locked(lock, start, count, wait=wait)
        ),
    )
    parts = tmp_path / "parts"
    _, found = find(output=parts, part="2/2")
    assert searched == ["b", "a"] and found["id"].tolist() == whole["id"].tolist()
    of_all = (parts / objects.CATALOGUE).stat()
    for options in ({"part": "1/2"}, {"part": "1/2", "resume": False}, {}):
        find(output=parts, has_scores=True, **options)
        assert searched == [] and (parts / objects.CATALOGUE).stat().st_ino == of_all.st_ino
    with pytest.raises(UsageError, match=r"that were found with faintest 22.0 \(now 19.0\)"):
        find(output=parts, has_scores=True, part="1/2", faintest=19.0)
    assert (parts / objects.CATALOGUE).stat().st_ino == of_all.st_ino


def test_a_tile_that_another_process_has_done_meanwhile_is_not_searched(
    find, monkeypatch, searched, tmp_path
):
    find()
    (pieces,) = (sorted((tmp_path / "out" / objects.SOURCES).glob("*.parquet")),)
    locked, kept = objects.locked, {piece: piece.read_bytes() for piece in pieces}
    for piece in (*pieces, tmp_path / "out" / objects.CATALOGUE):
        piece.unlink()

    def done_by_another(lock, start, count, *, wait=False):
        if not wait:
            return False
        for piece, content in kept.items():
            piece.write_bytes(content)
        return locked(lock, start, count, wait=wait)

    monkeypatch.setattr(objects, "locked", done_by_another)
    find()
    assert searched == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--catalogue", "x.csv"), "--detect finds the objects that --catalogue lists"),
        (("--no-detect", "--faintest", 20), "--faintest is for --detect: give that too"),
        (("--no-detect", "--zero-point", 30), "--zero-point is for --controls and --detect"),
        (("--colour", "g"), "--colour g is none: give two bands"),
        (("--colour", "g-i=3,1"), "--colour g-i=3,1 is none"),
        (("--detect-band", "y"), "the members need bands g, r, i, y"),
        (("--pack", "packed"), "--pack takes the objects that a run with --detect found"),
        (("--zero-point", "1,2"), "--zero-point 1,2: give one number, or one for each of g,r,i"),
    ],
)
def test_what_detection_cannot_do_is_one_line(more, message, run, members, survey, tmp_path):
    ended = run(infer.main, *options(survey, members, tmp_path / "no", *more))
    assert ended.status == 2 and message in ended.error
    assert len(ended.error.strip().splitlines()) == 1


def test_without_a_zero_point_there_are_no_magnitudes(find, survey, tmp_path):
    folder = tmp_path / "survey"
    shutil.copytree(survey, folder)
    fits.delval(folder / "b_i.fits", "MAGZERO")
    advice = "b_i.fits has no zero point in its header .*: give --zero-point, or --faintest None"
    with pytest.raises(UsageError, match=advice):
        find(folder)
    with pytest.raises(UsageError, match="or no range of --colour"):
        find(folder, faintest=None, colour="g-i=1")
    _, found = find(folder, faintest=None, least_snr=20, colour="g-i")
    known = np.isfinite(found["mag_i"])
    assert set(found["found_in"][known]) == {"a"} and set(found["found_in"][~known]) == {"b"}
    np.testing.assert_array_equal(np.isfinite(found["g_i"]), known)


def test_another_catalogue_of_that_name_is_not_overwritten(run, members, survey, tmp_path):
    own = Table({"ra": [10.0], "dec": [20.0]})
    own.write(tmp_path / "objects.parquet")
    before = (tmp_path / "objects.parquet").read_bytes()
    ended = run(infer.main, *options(survey, members, tmp_path))
    assert ended.status == 2 and "is of no run with --detect" in ended.error
    assert (tmp_path / "objects.parquet").read_bytes() == before


def test_without_sep_one_line_says_how_to_get_it(run, members, survey, tmp_path, monkeypatch):
    for name in ("lensjax.objects", "lensjax.data.tile_search", "lensjax.data.photometry"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("lensjax.objects")
    monkeypatch.setitem(sys.modules, "sep", None)
    ended = run(infer.main, *options(survey, members, tmp_path / "out"))
    assert ended.status == 2
    assert ended.error.strip() == "error: --detect needs sep: pip install '.[detect]'"


def test_objects_are_named_by_their_places():
    ra = np.array([155.6394, 155.6394, 0.0, 359.99999])
    names = designations(ra, np.array([-5.2096, -5.2096, 0.5, -0.00001]))
    assert list(names) == [
        *("J102233.45-051234.5", "J102233.45-051234.5-2"),
        *("J000000.00+003000.0", "J235959.99-000000.0"),
    ]
    place = SkyCoord("10h22m33.45s -05d12m34.5s")
    np.testing.assert_allclose((place.ra.deg, place.dec.deg), (ra[0], -5.2096), atol=3e-5)
