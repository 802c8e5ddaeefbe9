"""Objects in tiles, scored in stages: the scores are those of the same cutouts in memory, and those
of all members in one step."""

from typing import NamedTuple

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS

from lensjax import pages
from lensjax.inference import infer
from lensjax.inference_config import InferenceConfig
from tests import networks
from tests.cli.conftest import compiling
from tests.data import skies

SHAPE, BANDS, COUNT = (100, 120), ("g", "r", "i"), 30
SIZE = 16
# Of the coarse tile the cutouts are of 13 pixels: another program in each stage.
HEADERS = {
    "fine": skies.header(0.0, 10.0, SHAPE, distortion="SIP"),
    "coarse": skies.header(90.0, 10.0, SHAPE, scale=0.25),
}
CASCADE = {"cascade": "auto", "cascade_loss": 0.1}  # the promise takes 29 lenses


@pytest.fixture(scope="module", autouse=True)
def small_and_undrawn():
    with networks.small(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(pages, "draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Two tiles of other pixels, in one of which some are masked, and objects, one of them off all
    tiles."""
    folder, rng = tmp_path_factory.mktemp("survey"), np.random.default_rng(3)
    skies.write(folder, HEADERS, SHAPE, BANDS)
    with fits.open(folder / "fine_r.fits", mode="update") as hdus:
        hdus[0].data[40:50, 50:60] = np.nan
    parts = []
    for name, header in HEADERS.items():
        x, y = rng.uniform(0, SHAPE[1], COUNT), rng.uniform(0, SHAPE[0], COUNT)
        ra, dec = WCS(header).all_pix2world(x, y, 0)
        parts.append(Table({"id": [f"{name} {n}" for n in range(COUNT)], "ra": ra, "dec": dec}))
    parts[0].write(folder / "fine.parquet")
    parts.append(Table({"id": ["off"], "ra": [200.0], "dec": [0.0]}))
    vstack(parts).write(folder / "all.parquet")
    return folder


class Scored(NamedTuple):
    run: dict
    table: Table


@pytest.fixture(scope="module")
def score(survey, members, tmp_path_factory):
    """Returns a function that scores what lies in the survey, and returns the candidates by id."""

    def scored(data="tiles.csv", catalogue="all.parquet", **options) -> Scored:
        given = {"mc_samples": 2, "batch_size": 8, "checkpoints": members} | options
        output = tmp_path_factory.mktemp("run")
        catalogue = catalogue and str(survey / catalogue)
        config = InferenceConfig(
            data=str(survey / data), catalogue=catalogue, output=output, **given
        )
        run = infer(config).run
        table = Table.read(output / "candidates.parquet")
        table.sort("id")
        return Scored(run, table)

    return scored


@pytest.fixture(scope="module")
def plain(score) -> Table:
    return score().table


@pytest.fixture(scope="module")
def cascaded(score) -> Scored:
    return score(**CASCADE)


def assert_same(found: Table, wanted: Table) -> None:
    assert found["id"].tolist() == wanted["id"].tolist()
    assert found["flag"].tolist() == wanted["flag"].tolist()
    for name in ("logit", "logit_std", "vit_s16.0_probability", "vit_s16.1_probability"):
        one, other = (np.ma.filled(table[name], np.nan) for table in (found, wanted))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_scores_and_the_programs_are_those_of_cutouts_in_memory(score, survey, plain):
    with compiling() as of_tiles:
        found = score(catalogue="fine.parquet", **CASCADE)
    rows = plain[plain["tile"] == "fine"]
    images = skies.cutouts(survey, rows, SIZE, BANDS)
    assert np.isnan(images).any()
    names = {"id": np.array(rows["id"].tolist()), "bands": BANDS, "pixel_scale": skies.SCALE}
    np.savez(survey / "cut.npz", images=images, **names)
    with compiling() as of_cutouts:
        wanted = score("cut.npz", None, **CASCADE)
    assert_same(found.table, wanted.table)
    assert 0 < found.run["cascade"]["passed"] == wanted.run["cascade"]["passed"] < 1
    assert of_tiles.count("jit(step)") == of_cutouts.count("jit(step)") == 2
    assert len(of_tiles) <= len(of_cutouts)


def test_what_passes_has_the_scores_of_all_whatever_its_pixels(cascaded, plain):
    found = cascaded.table
    dropped = np.array(["alone" in flag for flag in found["flag"]])
    for tile in HEADERS:
        assert 0 < dropped[found["tile"] == tile].sum() < (found["tile"] == tile).sum()
    assert_same(found[~dropped], plain[~dropped])
    name = f"{cascaded.run['cascade']['member']}_probability"
    np.testing.assert_allclose(found[name], plain[name], atol=1e-5)
    assert cascaded.run["rejected"] == 2 * COUNT + 1 - len(found)


def test_ranges_of_ray_have_the_same_scores(cascaded, score, survey, from_the_last, monkeypatch):
    monkeypatch.chdir(survey)
    assert_same(score(**CASCADE, engine="ray").table, cascaded.table)


def test_logits_of_cutouts_from_tiles_are_used_again(score, plain, tmp_path):
    pytest.importorskip("blake3")
    for reused in (0, len(plain)):
        found = score(reuse=tmp_path)
        assert_same(found.table, plain)
        assert found.run["reused"] == reused
