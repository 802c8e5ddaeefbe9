"""Cutouts at an address are those of the files on disk, and so is what is wrong with them."""

import os
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from lensjax.data import copies, identity
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.identity import content_sha256
from lensjax.data.planes import Unreadable
from lensjax.errors import LensjaxError, UsageError
from lensjax.places import place
from tests.data.test_identity import FORMS, IMAGES, as_catalogue, as_npz, as_shards, as_zarr
from tests.object_storage import SECRET, served, upload


@pytest.fixture(scope="module")
def bucket():
    with served("cutouts") as address:
        yield address


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LENSJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def as_fits_files(folder, images):
    path = folder / "files"
    for row, image in enumerate(images):
        kind = path / ("lens" if row % 2 else "nonlens")
        kind.mkdir(parents=True, exist_ok=True)
        fits.writeto(kind / f"{row}.fits", np.moveaxis(image, 2, 0), overwrite=True)
    return path


def as_parquet(folder, images):
    as_fits_files(folder, images)
    paths = [f"files/{'lens' if row % 2 else 'nonlens'}/{row}.fits" for row in range(len(images))]
    Table({"path": paths, "id": range(len(paths))}).write(folder / "list.parquet", overwrite=True)
    return folder / "list.parquet"


def as_fits_table(folder, images):
    path = folder / "list.fits"
    Table.read(as_parquet(folder, images)).write(path, overwrite=True)
    return path


@pytest.mark.parametrize("write", [*FORMS, as_fits_files, as_parquet, as_fits_table])
def test_cutouts_and_columns_are_those_on_disk(write, tmp_path, bucket):
    path = write(tmp_path, IMAGES)
    address = upload(path, f"{bucket}/{write.__name__}")
    here, there = open_source(path, needed=None), open_source(address, needed=None)
    assert (len(here), here.bands) == (len(there), there.bands)
    for row in range(len(here)):
        np.testing.assert_array_equal(here[row].image, there[row].image)
    assert here.table.colnames == there.table.colnames
    start, root = str(tmp_path), address.rpartition("/")[0]
    for name in here.table.colnames:
        texts = [[str(v).replace(start, root) for v in each.table[name]] for each in (here, there)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("write", [as_npz, as_zarr, as_shards, as_catalogue])
def test_one_other_pixel_is_other_data(write, tmp_path, bucket):
    at = f"{bucket}/other_{write.__name__}"
    known = []
    for images in (IMAGES, IMAGES, IMAGES + 2.0 * (np.arange(8) == 4)[:, None]):
        address = upload(write(tmp_path, images), at)
        known.append(content_sha256(open_source(address, needed=None)))
    assert known[0] == known[1] != known[2]


def test_a_listing_says_of_many_files_what_asking_for_each_does(tmp_path, bucket, monkeypatch):
    source = open_source(upload(as_catalogue(tmp_path, IMAGES), f"{bucket}/many"), needed=None)
    (place(bucket) / "many/data/1.png").unlink()
    before = content_sha256(source)
    monkeypatch.setattr(identity, "LISTED_FROM", 2)
    assert content_sha256(source) == before


def test_a_catalogue_on_disk_names_cutouts_by_address(tmp_path, bucket):
    address = upload(as_parquet(tmp_path, IMAGES), f"{bucket}/by_address")
    root = address.rpartition("/")[0]
    paths = [
        f"{root}/files/lens/1.fits",
        "files/nonlens/0.fits",
        f"{root}/none.fits",
        "foo://a.fits",
        "foo://b[1]",
    ]
    Table({"path": paths}).write(tmp_path / "list.csv")
    source = open_source(tmp_path / "list.csv", needed=None)
    for row in (0, 1):
        np.testing.assert_array_equal(source[row].image, IMAGES[1 - row])
    with pytest.raises(Unreadable, match="no such file"):
        source[2]
    for row in (3, 4):
        with pytest.raises(Unreadable, match="foo"):
            source[row]
    assert len(content_sha256(source)) == 64


def test_memory_is_an_address_like_any_other(tmp_path):
    address = upload(as_parquet(tmp_path, IMAGES), "memory://cutouts")
    np.testing.assert_array_equal(open_source(address, needed=None)[3].image, IMAGES[3])


def test_a_large_file_is_a_copy_and_a_changed_one_another(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(copies, "IN_MEMORY_BYTES", 10)
    address = f"{bucket}/one.bin"
    for content in (b"x" * 100, b"y" * 100):
        place(address).write_bytes(content)
        assert copies.reading(address).read() == content
    first = copies.local(address)
    assert first.read_bytes() == content and copies.local(address) == first


def test_copies_make_room_for_others_and_never_fill_the_disk(tmp_path, bucket, monkeypatch):
    addresses = [f"{bucket}/{name}.bin" for name in "abc"]
    for address in addresses:
        place(address).write_bytes(b"x" * 100)
    usage = shutil.disk_usage(tmp_path)
    kept = [copies.local(address) for address in addresses[:2]]

    def disk(_):
        free = copies.FREE_BYTES + 150 - 100 * sum(path.exists() for path in kept)
        return usage._replace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    os.utime(kept[1].parent, (1, 1))
    kept.append(copies.local(addresses[2]))
    assert [path.exists() for path in kept] == [False, False, True]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(LensjaxError, match="no room for the .* LENSJAX_CACHE"):
        copies.local(addresses[0])


def test_shards_that_are_missing_or_short_are_said_so(tmp_path, bucket):
    address = upload(as_shards(tmp_path, IMAGES), f"{bucket}/short")
    shard = shards.shard_path(place(address), 0)
    shard.write_bytes(as_shards(tmp_path, IMAGES[:2]).joinpath(shard.name).read_bytes())
    source = open_source(address, needed=None)
    with pytest.raises(LensjaxError, match="has 2 cutouts instead of 4"):
        source[0]
    shard.unlink()
    with pytest.raises(UsageError, match="lacks shard-00000"):
        open_source(address, needed=None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("s3://cutouts/nothing", "no such file or folder"),
        ("s3://no-bucket-of-this-name/x", "no such file or folder"),
        ("foo://x/y", "cannot be reached"),
        (f"ftp://user:{SECRET}@host/x.fits", "holds a password"),
        (f"https://host/x.fits?X-Amz-Signature={SECRET}", "holds a password or a signature"),
    ],
)
def test_what_is_not_there_is_one_line_without_secrets(data, said, bucket):
    with pytest.raises(UsageError, match=said) as raised:
        open_source(data, needed=None)
    assert SECRET not in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_forbidden_is_said_so(tmp_path, bucket, monkeypatch):
    address = upload(as_parquet(tmp_path, IMAGES), f"{bucket}/forbidden")
    source = open_source(address, needed=None)

    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(place(address).fs, "info", refuse)
    with pytest.raises(UsageError, match="list.parquet cannot be read .*: Access Denied"):
        open_source(address, needed=None)
    with pytest.raises(Unreadable, match="access is denied"):
        source[0]


def test_no_cutout_is_rejected_because_the_network_is_down(tmp_path, bucket, monkeypatch):
    address = upload(as_parquet(tmp_path, IMAGES), f"{bucket}/down")
    source = open_source(address, needed=None)

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(place(address).fs, "cat_file", fail)
    with pytest.raises(LensjaxError, match="no route to host; the same command goes on"):
        source[0]
