"""Known lenses are found as a loop over all pairs finds them, and counted once each."""

import math

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table
from mocpy import MOC
from scipy import stats

from lensjax import known
from lensjax.errors import UsageError
from tests.scored import scored


def separation(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Arcsec between two places in degrees (haversine)."""
    (a, d), (b, e) = (tuple(map(math.radians, place)) for place in (one, other))
    h = math.sin((e - d) / 2) ** 2 + math.cos(d) * math.cos(e) * math.sin((b - a) / 2) ** 2
    return math.degrees(2 * math.asin(math.sqrt(h))) * 3600


def sky(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places within some arcsec of RA 0 and of the north pole."""
    rng = np.random.default_rng(seed)
    ra = (rng.uniform(-10, 10, count) / 3600) % 360
    dec = rng.uniform(-10, 10, count) / 3600
    polar = np.arange(count) % 2 == 0
    ra[polar], dec[polar] = rng.uniform(0, 360, polar.sum()), 90 - np.abs(dec[polar])
    return ra, dec


def test_the_nearest_lens_is_that_of_a_loop_over_all():
    ra, dec = sky(60, 0)
    ra[7] = np.nan
    predictions = scored(60, (3, 11), ra=ra, dec=dec)
    lenses = Table(dict(zip(("ra", "dec"), sky(25, 1), strict=True)))
    lens, distance = known.nearest(predictions, lenses, 3.0)
    assert {-1} < set(lens.tolist())
    for row in range(60):
        apart = [separation((ra[row], dec[row]), place) for place in lenses.iterrows()]
        best = -1 if row in (3, 7, 11) or not min(apart) <= 3 else int(np.argmin(apart))
        assert lens[row] == best
        assert (
            math.isnan(distance[row])
            if best < 0
            else math.isclose(distance[row], apart[best], abs_tol=1e-5)
        )


def test_lenses_count_once_by_their_best_cutout_with_exact_intervals():
    """Four lenses are in the area: two cutouts show the first, and one lens is elsewhere."""
    count = 40
    probability = np.linspace(1, 0, count).astype(np.float32)
    ra = np.arange(count) * 1.0
    ra[30] = ra[2]
    predictions = scored(
        count, (), ra=ra, dec=np.zeros(count), probability=probability, logit=probability
    )
    lenses = Table(
        {
            "name": ["a", "b", "c", "d", "e"],
            "ra": [2.0, 9.0, 10.0, 39.0, 200.0],
            "dec": [0.0002, 0, 0, 0, 0],
            "grading": ["confident", "confident", "probable", "probable", "probable"],
        }
    )
    said = known.said(predictions, lenses, 3.0)
    names = said.columns["known_lens"]
    assert {row: names[row] for row in np.flatnonzero(~np.ma.getmaskarray(names))} == {
        2: "a", 30: "a", 9: "b", 10: "c", 39: "d"
    }  # fmt: skip
    assert said.columns["known_separation"][2] == pytest.approx(0.72)
    record = said.record["known"]
    assert (record["lenses"], record["scored"]) == (5, 4)
    exact = stats.binomtest(2, 4).proportion_ci(0.95, "exact")
    assert record["top"] == {
        "10": {"found": 2, "share": 0.5, "low": pytest.approx(exact.low),
               "high": pytest.approx(exact.high)}
    }  # fmt: skip
    assert record["by_grading"]["probable"]["top"]["10"]["found"] == 0
    assert "4 of 5 known lenses" in said.notes[0] and "has 2 of these 4" in said.notes[1]


def test_lenses_in_the_area_that_are_no_objects_are_counted():
    """Four lenses lie within a degree of (0, 60): one is an object, one beside an object that was
    not scored; the fifth lies elsewhere."""
    predictions = scored(20, (1,), ra=np.arange(20) * 0.1, dec=np.full(20, 60.0))
    lenses = Table(
        {
            "name": list("abcde"),
            "ra": [0.0, 0.1, -0.05, 0.25, 90.0],
            "dec": [60.0, 60.0, 60.1, 60.2, 60.0],
            "grading": [""] * 5,
        }
    )
    lenses["ra"].unit = "deg"
    area = MOC.from_cone(lon=0 * u.deg, lat=60 * u.deg, radius=1 * u.deg, max_depth=14)
    said = known.said(predictions, lenses, 3.0, area)
    record = said.record["known"]
    assert (record["in_area"], record["in_area_not_scored"], record["scored"]) == (4, 3, 1)
    assert "4 known lenses lie in the area" in said.notes[1] and "3 of them" in said.notes[1]
    assert "in_area" not in known.said(predictions, lenses, 3.0).record["known"]


def test_no_lens_and_no_position_are_said():
    predictions = scored(20, (), ra=np.full(20, np.nan))
    said = known.said(
        predictions, Table({"name": ["a"], "ra": [1], "dec": [1], "grading": [""]}), 3
    )
    assert said.columns["known_lens"].mask.all() and said.record["known"]["scored"] == 0
    assert said.notes == ["0 of 1 known lenses are among the scored cutouts (within 3 arcsec)"]


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        (".csv", ("name", "RA [deg]", "DEC [deg]")),
        (".fits", ("name", "RA [deg]", "DEC [deg]")),
        (".vot", ("NAME", "Ra", "dec")),
    ],
)
def test_tables_are_understood_as_lenscat_has_them(tmp_path, names, suffix):
    columns = (["J1", "J2", "J3"], [1.5, 2.5, np.nan], [-3.0, 4.0, 5.0])
    table = Table(dict(zip(names, columns, strict=True)))
    table["Grading"] = ["confident", "probable", "probable"]
    table.write(tmp_path / f"lenses{suffix}", **({"format": "votable"} if suffix == ".vot" else {}))
    options = known.KnownOptions(known=str(tmp_path / f"lenses{suffix}"))
    lenses = known.lenses_of(options)
    assert [list(row) for row in lenses.iterrows()] == [
        ["J1", 1.5, -3.0, "confident"], ["J2", 2.5, 4.0, "probable"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,ra\na,1\n", "has no column dec"),
        ("name,ra,dec\na,,\n", "no lens with a position"),
        ("name,ra,dec\na,x,1\n", "not in decimal degrees"),
        (None, "no such file"),
    ],
)
def test_what_is_no_table_of_lenses_is_one_line(tmp_path, content, said):
    path = tmp_path / "lenses.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=said):
        known.lenses_of(known.KnownOptions(known=str(path)))
    with pytest.raises(UsageError, match="--known-radius"):
        known.lenses_of(known.KnownOptions(known_radius=0.0))
