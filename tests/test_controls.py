"""Controls are on the page like any candidate, and only controls.csv knows them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from lensjax import controls, injection
from lensjax.controls import ControlOptions, Shown
from lensjax.cutouts import Cutouts
from lensjax.data.catalog import open_source
from lensjax.errors import LensjaxError, UsageError
from lensjax.injection import Hosts
from lensjax.report.page import graded_page, write_page
from lensjax.report.pixels import packed
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import GROUND, Survey
from tests.report.test_pixels import steps
from tests.test_injection import SCALE, galaxies

COUNT, TOP, BANDS = 40, 12, ("r", "g")
IDS = np.array([f"survey/J{k:03d}-host" for k in range(COUNT)])
RANKING = np.random.default_rng(5).permutation(COUNT)


def sky(folder: Path, images: np.ndarray, **columns: np.ndarray) -> Path:
    columns = {"id": IDS, "ra": np.linspace(1, 2, COUNT), "dec": np.zeros(COUNT)} | columns
    return Cutouts(images, ("g", "r", "i"), SCALE, columns).save(folder / "sky.npz")


def written(data: Path, folder: Path, seed: int = 0, share: float = 0.5) -> Table:
    """Returns the truth about the page that is written."""
    source = open_source(data, needed=BANDS)
    best = {row: source[row] for row in RANKING[:TOP].tolist()}
    page = folder / "grading.html"
    options = ControlOptions(controls=share)
    page, truth = controls.write(page, options, str(data), source, RANKING, best, ["ring"], seed)
    assert page == folder / "grading.html" and truth == folder / "controls.csv"
    return controls.read_truth(truth)


def brighter(hosts: Hosts, survey: Survey, count: int, seed: int, sources: Stamps) -> Cutouts:
    """Stands in for `inject`, which takes long to compile: a straight arc in all but the first."""
    columns = {"host": hosts.id, **dict.fromkeys(controls.OF_ARCS, hosts.magnitude)}
    images = hosts.images.copy()
    images[:, 3] += 100
    return Cutouts(images, survey.bands, hosts.pixel_scale, columns)[1:]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Table]:
    """The folder of a run of galaxies without labels, and the truth about its page."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(injection, "inject", brighter)
        return folder, written(sky(folder, galaxies(COUNT)), folder)


def shown(folder: Path) -> dict:
    page = (folder / "grading.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_controls_are_lenses_in_other_cutouts_and_rows_of_low_score(run) -> None:
    folder, truth = run
    by_truth = {name: truth[truth["truth"] == name] for name in ("", "lens", "none")}
    assert {name: len(rows) for name, rows in by_truth.items()} == {"": TOP, "lens": 3, "none": 3}
    assert set(by_truth[""]["cutout"]) == set(IDS[RANKING[:TOP]])
    hosts, nones = (set(by_truth[name]["cutout"]) for name in ("lens", "none"))
    assert nones <= set(IDS[RANKING[COUNT // 2 :]]) and hosts <= set(IDS[RANKING[TOP:]]) - nones
    assert set(by_truth["none"]["origin"]) == {"lower half"}
    assert len(hosts) == 3 and np.isfinite(by_truth["lens"]["theta_e"]).all()
    assert np.ma.getmaskarray(by_truth["none"]["theta_e"]).all()
    assert not any((folder / f"candidates.{form}").exists() for form in ("csv", "fits", "parquet"))


def test_nothing_on_the_page_tells_a_control_from_a_candidate(run, tmp_path) -> None:
    folder, truth = run
    data = shown(folder)
    candidates = data["candidates"]
    assert [each["id"] for each in candidates] == truth["id"].tolist() == sorted(truth["id"])
    assert all(re.fullmatch("[0-9a-f]{10}", each["id"]) for each in candidates)
    for each in candidates:
        assert set(each) == {"id", "ra", "dec", "pixels"} and each["ra"] is each["dec"] is None
    alike = [{k: v for k, v in each["pixels"].items() if k in ("size", "scale", "averaged")}
             for each in candidates]  # fmt: skip
    assert all(each == alike[0] for each in alike)
    assert len({tuple(each["pixels"]) for each in candidates}) == 1
    # All else of the page is what a page without controls has.
    other = graded_page("grading", str(folder / "sky.npz"), [], [], BANDS, ["ring"])
    plain = write_page(tmp_path / "plain.html", graded=other).read_text()
    page = (folder / "grading.html").read_text()
    before, _, after = page.partition('id="data">')
    assert plain.startswith(before) and plain.endswith(after.partition("</script>")[2])
    assert data | {"candidates": []} == other
    assert not any(str(id_) in page for id_ in IDS) and "theta_e" not in page


@pytest.mark.slow
def test_arcs_of_simulated_lenses_are_such_as_a_person_sees(tmp_path) -> None:
    truth = written(sky(tmp_path, galaxies(COUNT)), tmp_path)
    lenses = truth[truth["truth"] == "lens"]
    assert len(lenses) == 3
    assert (lenses["arc_snr"] >= 15).all() and (lenses["theta_e"] >= 0.6).all()


def test_the_pixels_of_a_simulated_lens_are_its_hosts_and_an_arc(run) -> None:
    folder, truth = run
    source = open_source(folder / "sky.npz", needed=BANDS)
    data = {each["id"]: each["pixels"]["data"] for each in shown(folder)["candidates"]}
    for row in truth:
        cutout = source[int(np.flatnonzero(row["cutout"] == IDS)[0])]
        same = data[row["id"]] == packed(cutout, BANDS)["data"]
        assert same == (row["truth"] != "lens")


def shown_as_pictures() -> np.ndarray:
    """Returns the galaxies as 8-bit pictures: linear, a noise of six levels about a grey of ten."""
    levels = 10 + 6 * (galaxies(COUNT) - 7) / GROUND.sky_sigma
    return np.clip(levels, 0, 255).round().astype(np.uint8)


def test_arcs_in_pictures_are_whole_levels_and_all_else_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(injection, "inject", brighter)
    pictures = shown_as_pictures()
    truth = written(sky(tmp_path, pictures), tmp_path)
    data = {each["id"]: each["pixels"] for each in shown(tmp_path)["candidates"]}
    assert len({tuple(pixels) for pixels in data.values()}) == 1
    assert all(pixels["levels"] for pixels in data.values())
    lenses = truth[truth["truth"] == "lens"]
    assert len(lenses) == 3
    for row in lenses:
        before = pictures[np.flatnonzero(row["cutout"] == IDS)[0]][..., [1, 0]].astype(int)
        after = 128 + np.moveaxis(steps(data[row["id"]]), 0, 2)
        kept = np.arange(len(before)) != 3
        np.testing.assert_array_equal(after[kept], before[kept])
        assert (after[3] >= before[3]).all() and after.max() <= 255
        # An arc of 100 flux units is one of so many sigmas, and of as many levels times six, less
        # by what is compressed at the bright end.
        linear = 6 * 100 * 1.0 / np.array(GROUND.sky_sigma)[[1, 0]]
        assert (linear * 0.5 < (after - before)[3].mean(0)).all()
        assert ((after - before)[3].mean(0) < linear * 1.1).all()


def test_labelled_non_lenses_are_controls_and_an_older_page_keeps_its_truth(tmp_path) -> None:
    label = np.full(COUNT, -1)
    label[RANKING[TOP : TOP + 4]] = 0
    label[RANKING[:2]] = 0  # which are candidates
    data = sky(tmp_path, galaxies(COUNT), label=label)
    source = open_source(data, needed=BANDS)
    pool, origin = controls.non_lenses(source, RANKING, RANKING[:TOP])
    assert origin == "labelled" and set(pool) == set(RANKING[TOP : TOP + 4])
    named = {"aa": Shown(source[0], 0), "bb": Shown(source[1], 1, "none", "labelled")}
    controls._write_truth(tmp_path / "controls.csv", named, source)
    controls._write_truth(tmp_path / "controls.csv", {"bb": Shown(source[1], 1)}, source)
    truth = controls.read_truth(tmp_path / "controls.csv")
    assert truth["id"].tolist() == ["bb", "aa"] and truth["truth"].tolist() == ["", ""]


def test_names_depend_on_pixels_and_seed() -> None:
    images = galaxies(2)
    source = Cutouts(images, ("g", "r", "i"), SCALE, {}).source()
    name = controls.name_of(Shown(source[0], 0), 0)
    others = [controls.name_of(each, seed) for each, seed in (
        (Shown(source[0], 0), 1), (Shown(source[1], 0), 0), (Shown(source[0], 1), 0),
        (Shown(None, 0), 0),
    )]  # fmt: skip
    assert name == controls.name_of(Shown(source[0], 0, "none"), 0)
    assert len({name, *others}) == 5


def test_what_cannot_be_planted_is_refused_before_anything_is_scored(tmp_path) -> None:
    pictures = shown_as_pictures()
    data = sky(tmp_path, pictures)
    source = open_source(data, needed=BANDS)
    options = ControlOptions(controls=0.1, zero_point="25")
    with pytest.raises(UsageError, match="--zero-point is for fluxes, and --data holds pictures"):
        controls.check(options, str(data), source, TOP, 0)
    black = sky(tmp_path, np.where(pictures > 60, pictures, 0))
    with pytest.raises(UsageError, match="40 whose sky has no noise"):
        controls.check(ControlOptions(controls=0.1), str(black), source, TOP, 0)
    data = sky(tmp_path, galaxies(COUNT))
    source = open_source(data, needed=BANDS)
    with pytest.raises(UsageError, match="not among the 40 to be graded, and there are 40"):
        controls.check(ControlOptions(controls=0.1), str(data), source, COUNT, 0)
    with pytest.raises(UsageError, match="no band r, g"):
        controls.check(ControlOptions(controls=1, survey="euclid"), str(data), source, TOP, 0)
    for wrong in ({"controls": 0.0}, {"controls": 1.1}, {"seeing": 1.0}, {"survey": "hsc"}):
        with pytest.raises(UsageError, match="--controls|--survey"):
            ControlOptions(**wrong)
    with pytest.raises(LensjaxError, match="0 non-lenses"):
        controls.write(
            tmp_path / "p.html", ControlOptions(controls=0.1), str(data), source, RANKING[:1],
            {int(RANKING[0]): source[RANKING[0]]}, [], 0,
        )  # fmt: skip
