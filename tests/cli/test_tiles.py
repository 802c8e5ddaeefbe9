"""Scoring objects in tiles by the command: the scores of cutouts, every object once, and a run
that is interrupted within a tile."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from mocpy import MOC

from lensjax import ledger
from lensjax.cli import infer
from lensjax.data import tile_areas
from lensjax.ensemble import scoring
from lensjax.errors import LensjaxError, UsageError
from lensjax.inference_config import InferenceConfig
from tests.data import skies

SHAPE, BANDS = (100, 120), ("g", "r", "i")
COUNT = 30


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Two tiles that overlap, one of them damaged in the middle of its file, and objects."""
    folder = tmp_path_factory.mktemp("survey")
    headers = {
        "one": skies.header(0.0, 10.0, SHAPE, distortion="SIP"),
        "two": skies.header(0.005, 10.0, SHAPE, angle=10.0),
        "lost": skies.header(90.0, 10.0, SHAPE),
    }
    skies.write(folder, headers, SHAPE, BANDS)
    (folder / "lost_r.fits").unlink()
    for name in ("one", "two"):
        fits.setval(folder / f"{name}_r.fits", "MAGZERO", value=29.5)
    rng = np.random.default_rng(2)
    sky = []
    for name, count in (("one", COUNT), ("two", COUNT), ("lost", 3)):
        x, y = rng.uniform(0, SHAPE[1], count), rng.uniform(0, SHAPE[0], count)
        sky.append(WCS(headers[name]).all_pix2world(x, y, 0))
    ra, dec = np.hstack([*sky, [[45.0], [0.0]]])
    names = [f"object {number}" for number in range(len(ra))]
    Table({"NAME": names, "RA": ra, "DEC": dec, "id": names}).write(folder / "objects.parquet")
    return folder


def options(survey, members, output, *more):
    return (
        *("--data", survey / "tiles.csv", "--catalogue", survey / "objects.parquet"),
        *("--checkpoints", members, "--output", output, "--mc-samples", 2, "--batch-size", 8),
        *more,
    )


def test_objects_in_tiles_are_scored_as_their_cutouts_are(
    run, members, survey, tmp_path, monkeypatch
):
    (tmp_path / "known.csv").write_text("ra,dec\n0,10\n45,0\n")
    areas, searched = [], tile_areas.searched
    monkeypatch.setattr(tile_areas, "searched", lambda *of: areas.append(searched(*of)) or areas[0])
    more = ("--cutouts", 3, "--known", tmp_path / "known.csv")
    ended = run(infer.main, *options(survey, members, tmp_path / "tiles", *more))
    assert ended.status == 0, ended.error
    found = Table.read(tmp_path / "tiles" / "candidates.parquet")
    rejects = Table.read(tmp_path / "tiles" / "rejects.csv")
    given = len(Table.read(survey / "objects.parquet"))
    assert len(found) + len(rejects) == given and len(found) > COUNT
    reasons = dict(zip(rejects["id"], rejects["reason"], strict=True))
    assert sum("tile lost: lost_r.fits: no such file" in each for each in reasons.values()) == 3
    assert reasons[f"object {given - 1}"].startswith("in none of the 3 tiles")
    assert sum("from the edge of tile" in each for each in reasons.values()) == len(rejects) - 4

    counts = Counter(reasons.values())
    record = json.loads((tmp_path / "tiles" / "run.json").read_text())
    assert record["rejected_for"] == counts
    for reason, count in counts.most_common(3):
        assert f"{count} rejected: {reason}" in ended.out
    assert (found["edge_distance"].unit, found["tile"].unit) == (u.arcsec, None)

    images = skies.cutouts(survey, found, 16, BANDS)
    np.savez(tmp_path / "x.npz", images=images, id=found["id"], pixel_scale=0.2, bands=BANDS)
    cut = ("--data", tmp_path / "x.npz", "--output", tmp_path / "cut", "--mc-samples", 2)
    assert run(infer.main, "--checkpoints", members, *cut).status == 0
    of_cutouts = Table.read(tmp_path / "cut" / "candidates.parquet")
    logits = dict(zip(of_cutouts["id"], of_cutouts["logit"], strict=True))
    np.testing.assert_allclose(found["logit"], [logits[name] for name in found["id"]], atol=1e-4)

    files = sorted((tmp_path / "tiles" / "cutouts").iterdir())
    assert [path.name[:6] for path in files] == ["00001_", "00002_", "00003_"]
    for path, one, image in zip(files, found, images, strict=False):
        with fits.open(path) as hdus:
            assert [hdu.name.lower() for hdu in hdus[1:]] == list(BANDS)
            assert (hdus[0].header["OBJECT"], hdus[0].header["RANK"]) == (one["id"], one["rank"])
            assert [hdu.header.get("MAGZERO") for hdu in hdus[1:]] == [None, 29.5, None]
            np.testing.assert_array_equal(np.stack([h.data for h in hdus[1:]], -1), image)
            x, y = WCS(hdus[1].header).all_world2pix(one["ra"], one["dec"], 0)
            assert abs(x - 7.5) <= 0.5001 and abs(y - 7.5) <= 0.5001
    assert record["config"]["field"] == pytest.approx(3.2)
    assert record["known"]["in_area"] == 1
    # Both tiles that can be read overlap; of each, half a cutout is missing at each edge.
    moc = MOC.load(str(tmp_path / "tiles" / "searched.moc.fits"), "fits")
    assert areas == [moc]
    assert moc.contains_lonlat(found["ra"].data * u.deg, found["dec"].data * u.deg).all()
    one = (SHAPE[0] - 15) * (SHAPE[1] - 15) * (0.2 / 3600) ** 2
    assert one < moc.sky_fraction * 4 * np.pi * np.degrees(1) ** 2 < 2 * one


@pytest.mark.parametrize(
    ("more", "fetches", "before"),
    [((), 3, 16), (("--cascade", "auto", "--cascade-loss", 0.1), 6, 8)],
)
def test_a_run_that_ends_within_a_tile_goes_on_to_the_same_bytes(
    more, fetches, before, run, undrawn, members, survey, tmp_path, monkeypatch
):
    assert run(infer.main, *options(survey, members, tmp_path / "alone", *more)).status == 0
    monkeypatch.setattr(ledger, "SAVE_INTERVAL_SECONDS", -1.0)
    fetch, fetched = scoring._Scorer.fetch, []

    def fetch_or_end(*given):
        fetched.append(given)
        if len(fetched) == fetches:
            raise LensjaxError("the end")
        return fetch(*given)

    monkeypatch.setattr(scoring._Scorer, "fetch", fetch_or_end)
    assert run(infer.main, *options(survey, members, tmp_path / "ended", *more)).status == 1
    assert list((tmp_path / "ended").glob(".scores/*/000000000000-*.parquet"))
    assert run(infer.main, *options(survey, members, tmp_path / "ended", *more)).status == 0
    record = json.loads((tmp_path / "ended" / "run.json").read_text())
    assert record["scored_before"] == before
    for name in ("candidates.csv", "candidates.parquet", "predictions.npz", "rejects.csv"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "ended" / name).read_bytes()


@pytest.mark.slow
def test_candidates_in_pieces_of_the_sky_are_searched_again(
    run, undrawn, members, survey, tmp_path
):
    pytest.importorskip("hats")
    first, again = tmp_path / "first", tmp_path / "again"
    assert run(infer.main, *options(survey, members, first, "--hats")).status == 0
    more = ("--catalogue", first / "candidates.hats")
    ended = run(infer.main, *options(survey, members, again, *more))
    assert ended.status == 0, ended.error
    before, after = (Table.read(folder / "candidates.parquet") for folder in (first, again))
    assert len(after) == len(before) > COUNT and after["id"].tolist() == before["id"].tolist()
    np.testing.assert_array_equal(after["logit"], before["logit"])
    np.testing.assert_array_equal(after["rank_input"], before["rank"])
    assert "_healpix_29" in after.colnames and "_healpix_29_input" not in after.colnames


def test_paths_may_be_relative(run, undrawn, members, survey, tmp_path, monkeypatch):
    monkeypatch.chdir(survey)
    data = ("--data", "tiles.csv", "--catalogue", "objects.parquet")
    more = ("--checkpoints", members, "--output", tmp_path / "out", "--mc-samples", 2)
    ended = run(infer.main, *data, *more)
    assert ended.status == 0, ended.error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--field", 100), "far|arcsec"),
        (("--field", 0), "give --field"),
        (("--bands", "u,v,w"), "bands"),
    ],
)
def test_what_tiles_cannot_do_is_one_line(more, message, run, members, survey, tmp_path):
    ended = run(infer.main, *options(survey, members, tmp_path / "no", *more))
    assert ended.status == 2 and len(ended.error.strip().splitlines()) == 1
    assert re.search(message, ended.error)


@pytest.mark.parametrize("more", [("cutouts", 3), ("field", 5.0), ("north_up", True)])
def test_what_is_for_tiles_alone_is_refused_without(more):
    option = f"--{more[0].replace('_', '-')}"
    with pytest.raises(UsageError, match=f"^{option} is for tiles: give --catalogue or --detect$"):
        InferenceConfig(data="cutouts", **dict([more]))
    InferenceConfig(data="tiles.csv", catalogue="objects.csv", **dict([more]))
