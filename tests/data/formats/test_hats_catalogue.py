"""Of a HATS catalogue the objects in the tiles are those of the same catalogue as a table, in every
form that such catalogues have, and files of other pixels of the sky are not opened."""

import shutil
import sys

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.wcs import WCS

from lensjax import coverage, hats, results
from lensjax.data.bands import Wanted
from lensjax.data.formats import arrow
from lensjax.data.identity import content_sha256
from lensjax.data.objects_in_tiles import open_tiles
from lensjax.errors import UsageError
from tests.data import skies
from tests.object_storage import served, upload

pytestmark = pytest.mark.slow
SHAPE = (120, 150)
HEADER = skies.header(0.0, 10.0, SHAPE)


def opened(survey, catalogue):
    return open_tiles(str(survey.parent / "tiles.csv"), str(catalogue), Wanted(("g", "r")), 3.2)


COLUMNS = {"col_ra=ra": "col_ra=RA_ICRS", "col_dec=dec": "col_dec=DE_ICRS"}


def change(folder, texts):
    """Writes other texts into the properties of a catalogue."""
    for name in ("properties", "hats.properties"):
        said = (folder / name).read_text()
        for before, after in texts.items():
            said = said.replace(before, after)
        (folder / name).write_text(said)


@pytest.fixture
def survey(tmp_path):
    """A tile across RA 0, and a catalogue of objects in it, around it and all over the sky."""
    pytest.importorskip("hats")
    skies.write(tmp_path, {"a": HEADER}, SHAPE)
    rng = np.random.default_rng(0)
    here = WCS(HEADER).all_pix2world(*rng.uniform(-100, 250, (2, 300)), 0)
    ra, dec = np.hstack([here, [360 * rng.random(500), 170 * rng.random(500) - 85]])
    table = Table({"id": np.arange(800), "RA_ICRS": ra % 360, "DE_ICRS": dec, "ra": ra - 180})
    table["name"], table["mag"] = [f"object {n}" for n in range(800)], rng.normal(20, 2, 800)
    table["_healpix_29"] = coverage.healpix(ra % 360, dec)
    hats.write(tmp_path, table, results._write_parquet, most=60)
    folder = tmp_path / hats.FOLDER
    change(folder, COLUMNS)
    plain = Table(table, copy=True)
    plain.rename_columns(["ra", "RA_ICRS", "DE_ICRS"], ["ra_input", "ra", "dec"])
    plain.remove_column("_healpix_29")
    plain.write(tmp_path / "objects.parquet")
    return folder


def as_it_is(folder, _):
    return folder


def as_collection(folder, _):
    outer = folder.parent / "collection"
    shutil.copytree(folder, outer / "main")
    said = "obs_collection=all\nhats_primary_table_url=main\n"
    (outer / "collection.properties").write_text(said)
    return outer


def as_folders(folder, _):
    """A folder for each pixel, of two files."""
    for path in list((folder / "dataset").rglob("Npix=*.parquet")):
        table = Table.read(path)
        path.unlink()
        for number, rows in enumerate(np.array_split(np.arange(len(table)), 2)):
            results._write_parquet(path.with_suffix("") / f"part{number}.parquet", table[rows])
    change(folder, {"suffix=.parquet": "suffix=/"})
    return folder


def in_memory(folder, _):
    return upload(folder / "properties", "memory://hats").removesuffix("/properties")


def in_object_storage(folder, bucket):
    address = upload(folder / "properties", f"{bucket}/hats")
    return address.removesuffix("/properties")


@pytest.fixture(scope="module")
def bucket():
    with served("catalogues") as address:
        yield address


@pytest.mark.parametrize(
    "form", [as_it_is, as_collection, as_folders, in_memory, in_object_storage]
)
def test_objects_in_the_tiles_are_those_of_the_table(form, survey, bucket, monkeypatch):
    whole = opened(survey, survey.parent / "objects.parquet")
    number, catalogue = len(list(survey.rglob("*.parquet"))), form(survey, bucket)
    read, readable = set(), arrow.readable
    monkeypatch.setattr(arrow, "readable", lambda path: read.add(str(path)) or readable(path))
    found = opened(survey, catalogue)
    assert 0 < len({path.partition("/part")[0] for path in read}) < number / 3
    held = [source.tiles.tile >= 0 for source in (whole, found)]
    assert held[0].sum() == held[1].sum() > 20
    for name in ("id", "ra", "dec", "ra_input", "name", "mag", "path", "edge_distance"):
        one, other = (s.table[name][rows] for s, rows in zip((whole, found), held, strict=True))
        np.testing.assert_array_equal(one, other, name)
    assert set(found.table.colnames) == set(whole.table.colnames)
    # Of the others only those are given that lie within a 32nd of the tile's side of it, or so.
    x, y = WCS(HEADER).all_world2pix(found.table["ra"], found.table["dec"], 0)
    assert np.max([-x, -y, x - SHAPE[1], y - SHAPE[0]]) < 12
    assert held[1].sum() < len(found) < 300
    assert "pixels of the catalogue (those beyond the tiles are not given)" in found.description
    assert len(content_sha256(found)) == 64


def test_objects_without_an_id_are_called_by_their_place(survey):
    """The name of each is the same whatever part of the catalogue is read."""
    for path in survey.rglob("Npix=*.parquet"):
        table = Table.read(path)
        table.remove_column("id")
        results._write_parquet(path, table)
    found = opened(survey, survey).table
    for name, ra, dec in found["id", "ra", "dec"]:
        place = SkyCoord(name, unit=("hourangle", "deg"))
        assert place.separation(SkyCoord(ra, dec, unit="deg")).arcsec < 0.2
    assert len(set(found["id"])) == len(found) > 20


def test_a_catalogue_that_cannot_be_used_is_one_line(survey, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty cannot be read as a HATS .* hats.properties"):
        opened(survey, tmp_path / "empty")
    for path in survey.rglob("Npix=*.parquet"):
        path.rename(path.with_suffix(".lost"))
    with pytest.raises(UsageError, match="cannot be read as a HATS catalogue: .*Npix"):
        opened(survey, survey)
    change(
        survey, {"type=object": "type=margin\nhats_primary_table_url=x\nhats_margin_threshold=1"}
    )
    with pytest.raises(UsageError, match="is a HATS MarginCatalog, not one of objects"):
        opened(survey, survey)
    monkeypatch.setitem(sys.modules, "hats", None)
    with pytest.raises(UsageError, match=r"need hats: pip install '\.\[hats\]'"):
        opened(survey, survey)


def test_a_catalogue_of_another_sky_has_no_objects_in_the_tiles(survey):
    shutil.rmtree(survey)
    far = Table({"RA_ICRS": [100.0], "DE_ICRS": [-40.0]})
    far["_healpix_29"] = coverage.healpix(far["RA_ICRS"], far["DE_ICRS"])
    hats.write(survey.parent, far, results._write_parquet)
    change(survey, COLUMNS)
    with pytest.raises(UsageError, match="candidates.hats has no objects in the tiles"):
        opened(survey, survey)
