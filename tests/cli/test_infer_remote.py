"""A run whose data, or whose results, are at an address gives what one on disk does."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from lensjax import inference, ledger, places
from lensjax.cli import infer
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards, tile_files
from lensjax.errors import Interrupted
from lensjax.places import place
from tests.data import skies
from tests.object_storage import SECRET, served, upload


@pytest.fixture(scope="module")
def bucket():
    with served("runs") as address:
        yield address


@pytest.fixture
def score(run, members, undrawn):
    """Returns a function that scores cutouts, and has to end well."""

    def score_cutouts(data, output, *more, status=0):
        common = ["--batch-size", 4, "--mc-samples", 1, "--pixel-scale", 0.2, "--bands", "g,r,i"]
        common += ["--checkpoints", members, "--ensemble", "vit_s16:1"]
        options = [*common, "--data", data, "--output", output, *more]
        ended = run(infer.main, *options)
        assert ended.status == status, ended.error
        return ended

    return score_cutouts


@pytest.fixture
def files(tmp_path, images):
    """A folder of FITS files, one of them damaged, and a catalogue of them."""
    folder = tmp_path / "sky" / "files"
    folder.mkdir(parents=True)
    for row, image in enumerate(images[:10]):
        fits.writeto(folder / f"{row}.fits", np.moveaxis(image, 2, 0))
    (folder / "3.fits").write_bytes(b"SIMPLE")
    paths = [f"files/{row}.fits" for row in range(10)]
    Table({"path": paths, "tile": range(10)}).write(folder.parent / "list.parquet")
    return folder


def as_folder(files, images):
    return files


def as_parquet(files, images):
    return files.parent / "list.parquet"


def as_zarr(files, images):
    import zarr

    store = files.parent / "images.zarr"
    zarr.create_array(str(store), name="images", data=images, chunks=(4, 16, 16, 3))
    return store


def as_shards(files, images):
    folder = files.parent / "shards"
    shards.pack(open_source(as_parquet(files, images), needed=None, bands="g,r,i"), folder)
    return folder


CATALOGUE = ("candidates.csv", "rejects.csv")


@pytest.mark.parametrize("write", [as_folder, as_parquet, as_zarr, as_shards])
def test_the_catalogue_is_that_of_the_files_on_disk(write, score, files, images, bucket, tmp_path):
    data = write(files, images)
    address = upload(data, f"{bucket}/{write.__name__}")
    runs = tmp_path / "here", place(f"memory://{write.__name__}")
    score(data, runs[0])
    score(address, runs[1])
    start, root = str(data.parent), address.rpartition("/")[0]
    for name in CATALOGUE:
        here, there = ((run / name).read_text() for run in runs)
        assert here.replace(start, root) == there.replace(start, root)
        assert len(here) > 10


@pytest.fixture
def survey(tmp_path):
    """A table of two tiles, one of them compressed, and objects in them."""
    folder, shape = tmp_path / "survey", (200, 300)
    folder.mkdir()
    headers = {"a": skies.header(0.0, 60.0, shape), "b": skies.header(0.04, 60.0, shape)}
    table = skies.write(folder, headers, shape, ("g", "r", "i"))
    text = table.read_text()
    for band in "gri":
        packed = fits.CompImageHDU(fits.getdata(folder / f"b_{band}.fits"), headers["b"])
        packed.writeto(folder / f"b_{band}.fits.fz")
        text = text.replace(f"b_{band}.fits", f"b_{band}.fits.fz")
    table.write_text(text)
    x, y = np.random.default_rng(0).uniform(0, 60, (2, 12))
    places = [WCS(header).all_pix2world(x, y, 0) for header in headers.values()]
    ra, dec = np.hstack(places)
    Table({"ra": ra, "dec": dec}).write(folder / "objects.parquet")
    return table


@pytest.mark.slow
def test_tiles_at_an_address_are_read_in_sections_to_the_same_catalogue(
    score, survey, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(places, "_READ_AHEAD_BYTES", 2**12)
    caches = []

    def readable(path):
        file = places.readable(path)
        caches.append(file.cache)
        return file

    monkeypatch.setattr(tile_files, "readable", readable)
    score(survey, tmp_path / "here", "--catalogue", survey.parent / "objects.parquet")
    assert not caches
    root = f"{bucket}/survey"
    upload(survey, root)
    there = tmp_path / "there"
    score(f"{root}/tiles.csv", there, "--catalogue", f"{root}/objects.parquet")
    for name in CATALOGUE:
        here = (tmp_path / "here" / name).read_text()
        assert here.replace(str(survey.parent), root) == (there / name).read_text()
    assert len(Table.read(there / "candidates.csv")) > 10
    # Headers, and those rows of pixels that cutouts need.
    fetched = sum(cache.total_requested_bytes for cache in caches)
    assert 0 < fetched < 0.5 * sum(file.stat().st_size for file in survey.parent.glob("*.fits*"))


def test_results_at_an_address_are_those_on_disk(score, files, tmp_path, bucket, monkeypatch):
    monkeypatch.undo()  # with pictures
    here, root = tmp_path / "here", f"{bucket}/results"
    (place(root) / "candidates-2.csv").write_bytes(b"of a run before")
    (place(root) / "notes.txt").write_bytes(b"not ours")
    score(files.parent / "list.parquet", here)
    ended = score(files.parent / "list.parquet", root)
    there = {path.name: path.read_bytes() for path in place(root).iterdir() if path.is_file()}
    assert there.keys() == {path.name for path in here.iterdir()} | {"notes.txt"}
    assert {"candidates.fits", "report.html", "mosaic.png", "run.json"} <= there.keys()
    for name in there.keys() - {"run.json", "report.html", "notes.txt"}:
        assert there[name] == (here / name).read_bytes(), name
    assert json.loads(there["run.json"])["config"]["output"] == root
    assert f"{root}/candidates.csv" in ended.out
    assert SECRET.encode() not in b"".join(there.values())
    assert not (place(root) / inference.PARTS).exists()


def test_parts_at_an_address_are_shared_and_a_stopped_run_goes_on(
    score, files, tmp_path, bucket, monkeypatch
):
    data, root = files.parent / "list.parquet", f"{bucket}/parts"
    score(data, tmp_path / "alone")
    score(data, root, "--part", "2/2")
    read = []
    add = ledger.Ledger.add

    def stop(self, start, columns):
        add(self, start, columns)
        self.save()
        raise Interrupted("stopped")

    monkeypatch.setattr(ledger.Ledger, "add", stop)
    score(data, root, status=3)
    monkeypatch.setattr(ledger.Ledger, "add", lambda *given: (read.append(given[1]), add(*given)))
    assert score(data, root, "--seed", 5, status=2).error.count("9 rows that were done with") == 1
    score(data, root)
    assert read == [4]
    for name in CATALOGUE:
        assert (place(root) / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not (place(root) / inference.PARTS).exists()


def test_parts_that_another_process_has_deleted_are_missed(bucket):
    rows = ledger.Ledger(place(bucket) / "gone", {}, range(4))
    rows.add(0, {"x": np.arange(4)})
    np.testing.assert_array_equal(rows.columns()["x"], np.arange(4))
    rows.discard()
    with pytest.raises(ledger.LensjaxError, match="4 of 4 rows are no longer in"):
        rows.columns()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--output", "s3://no-such-bucket-of-mine/r", "cannot write s3://no-such-bucket-of-mine/r"),
        ("--checkpoints", "s3://runs/members", "--checkpoints takes a place of this machine"),
        ("--output", f"s3://user:{SECRET}@runs/r", "holds a password"),
    ],
)
def test_places_that_cannot_be_are_one_line(option, value, said, score, files, bucket, tmp_path):
    status = 1 if "write" in said else 2
    error = score(files, tmp_path / "r", option, value, status=status).error
    assert said in error and error.count("\n") == 1 and SECRET not in error


def test_results_among_the_cutouts_are_refused(score, files, bucket):
    address = upload(files, f"{bucket}/among")
    error = score(address, f"{address}/results", status=2).error
    assert "lies in --data" in error
