"""HDF5 and Zarr: images on demand, rows tied by an index, one clear line for what is wrong."""

import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from astropy.io import fits

from lensjax.data.bands import parse
from lensjax.data.catalog import open_source
from lensjax.data.formats import arrays
from lensjax.data.pipeline import batches
from lensjax.data.planes import Unreadable
from lensjax.data.source import Arrays, source_of_arrays
from lensjax.errors import UsageError
from tests.data.wanted import preprocessing

GRI = ("g", "r", "i")
IMAGES = np.random.default_rng(0).normal(size=(7, 6, 5, 3)).astype(np.float32)
IDS = np.array([f"tile α,{row}" for row in range(7)])


def holds(source, rows=range(7), images=IMAGES) -> None:
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(source[place].image, images[row])
    np.testing.assert_array_equal(source.stack.read(slice(1, 3)), images[list(rows[1:3])])


@pytest.fixture
def hdf5(tmp_path):
    path = tmp_path / "cutouts.h5"
    with h5py.File(path, "w") as file:
        file["images"] = IMAGES
        file["id"] = IDS.astype(object)
        file["ra"] = np.linspace(1, 2, 7)
        file["label"] = np.arange(7) % 2
        file["psf"] = np.zeros((5, 5))
        file.attrs["bands"] = ["g", "r", "i"]
        file.attrs["pixel_scale"] = 0.2
    return path


def test_hdf5(hdf5):
    source = open_source(hdf5, needed=GRI)
    holds(source)
    assert source.table["id"].tolist() == IDS.tolist() and source.threads > 0
    assert source.table["label"].tolist() == [0, 1, 0, 1, 0, 1, 0] and source[0].pixel_scale == 0.2
    turned = open_source(hdf5, needed=("i", "g"), pixel_scale=0.5)
    holds(turned, images=IMAGES[..., [2, 0]])
    assert turned[0].pixel_scale == 0.5


def test_hdf5_in_groups_and_channels_first(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["sample/pixels"] = np.moveaxis(IMAGES, 3, 1)
        file["sample/id"] = np.arange(7) + 2**60
    source = open_source(tmp_path / "a.hdf5", needed=GRI)
    holds(source)
    assert source.table["id"].tolist() == (np.arange(7) + 2**60).tolist()


def test_hdf5_that_cannot_serve_is_refused(tmp_path, hdf5):
    (tmp_path / "text.h5").write_text("no data")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["first"], file["second"] = IMAGES, IMAGES
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["id"] = np.arange(3)
    whole = hdf5.read_bytes()
    (tmp_path / "half.h5").write_bytes(whole[: len(whole) // 2])
    for name, words in {
        "text.h5": "cannot be read as HDF5",
        "half.h5": "cannot be read as HDF5",
        "two.h5": "several arrays of images .first, second.: call the right one `images`",
        "none.h5": "no array of images",
    }.items():
        with pytest.raises(UsageError, match=words) as caught:
            open_source(tmp_path / name, needed=GRI)
        assert "\n" not in str(caught.value)


@pytest.fixture(params=[2, 3])
def store(tmp_path, request):
    path = tmp_path / "survey.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=request.param)
    images = group.create_array("images", shape=IMAGES.shape, chunks=(3, 6, 5, 3), dtype="f4")
    images[...] = IMAGES
    return path


def sidecar(path, rows, **columns) -> None:
    table = pa.table({"idx_in_zarr": rows, **columns})
    pa.parquet.write_table(table, path)


def test_zarr_alone(store):
    source = open_source(store, needed=GRI, pixel_scale=0.1)
    holds(source)
    assert source.table["id"].tolist() == list(range(7)) and source[0].pixel_scale == 0.1


@pytest.mark.parametrize("given", ["survey.zarr", "survey.parquet"])
def test_zarr_with_its_catalogue(store, given):
    rows = [6, 0, 3, 3, 1]
    folder = store.parent
    sidecar(folder / "survey.parquet", rows, id=[f"s{row}" for row in rows], grade=[1, 2, 3, 4, 5])
    sidecar(folder / "other.parquet", [0])
    source = open_source(folder / given, needed=GRI)
    holds(source, rows)
    assert source.table["id"].tolist() == ["s6", "s0", "s3", "s3", "s1"]
    assert source.table["grade"].tolist() == [1, 2, 3, 4, 5]
    assert len(source) == 5 and "2x" not in source.description


def test_zarr_that_does_not_fit_its_catalogue_is_refused(store):
    folder = store.parent
    sidecar(folder / "survey.parquet", [0, 7])
    with pytest.raises(UsageError, match="must hold numbers of images, from 0 to 6 of"):
        open_source(store, needed=GRI)
    for name in ("a", "b"):
        sidecar(folder / f"{name}.parquet", [0])
    (folder / "survey.parquet").unlink()
    with pytest.raises(UsageError, match="which of a.parquet, b.parquet belongs to it"):
        open_source(store, needed=GRI)
    (folder / "alone").mkdir()
    sidecar(folder / "alone" / "survey.parquet", [0])
    with pytest.raises(UsageError, match="there is no Zarr beside it"):
        open_source(folder / "alone" / "survey.parquet", needed=GRI)


def test_a_damaged_zarr_is_refused(store):
    for mark in (".zgroup", "zarr.json"):
        if (store / mark).exists():
            (store / mark).write_text("{")
    with pytest.raises(UsageError, match="cannot be read as Zarr") as caught:
        open_source(store, needed=GRI)
    assert "\n" not in str(caught.value)


def test_the_format_can_be_said(tmp_path, hdf5):
    hdf5.rename(tmp_path / "cutouts.dat")
    with pytest.raises(UsageError, match="--format"):
        open_source(tmp_path / "cutouts.dat", needed=GRI)
    holds(open_source(tmp_path / "cutouts.dat", needed=GRI, format="hdf5"))
    with pytest.raises(UsageError, match="is a folder that cannot be of the format hdf5"):
        open_source(tmp_path, needed=GRI, format="hdf5")


# --- what lies beside the images ---


def saved(path, form, images=IMAGES, **metadata):
    """A stack with arrays beside its images."""
    if form == "npz":
        np.savez(path, images=images, **metadata)
    elif form == "h5":
        with h5py.File(path, "w") as file:
            file["images"] = images
            for name, values in metadata.items():
                file[name] = values
    else:
        group = zarr.open_group(path, mode="w")
        for name, values in {"images": images, **metadata}.items():
            group.create_array(name, data=np.asarray(values))
    return path


def refused(path, *words):
    with pytest.raises(UsageError) as caught:
        open_source(path, needed=GRI)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("form", ["npz", "h5", "zarr"])
@pytest.mark.parametrize("name", ["id", "label", "ra", "DEC", "group", "filepath", "object_id"])
def test_what_names_the_cutouts_must_have_a_value_for_each(tmp_path, form, name):
    for count in (5, 8):
        path = saved(tmp_path / f"{count}.{form}", form, **{name: np.ones(count)})
        refused(path, f"`{name}` has {count} values for 7 cutouts")
    refused(saved(tmp_path / f"2.{form}", form, **{name: np.ones((7, 2))}), "7 x 2 values")


@pytest.mark.parametrize("form", ["npz", "h5", "zarr"])
def test_what_is_not_carried_is_said(tmp_path, form):
    path = saved(tmp_path / f"a.{form}", form, psf=np.ones((3, 3)), z=np.ones(6), mag=np.arange(7))
    source = open_source(path, needed=GRI)
    assert source.table["mag"].tolist() == list(range(7))
    assert source.table.colnames == ["id", "ra", "dec", "path", "mag"]
    words = "left out: `psf` has 3 x 3 values for 7 cutouts; `z` has 6 values for 7 cutouts"
    assert words in source.description
    assert (
        "left out" not in open_source(saved(tmp_path / f"b.{form}", form), needed=GRI).description
    )


def test_odd_datasets_are_left_out_by_name(tmp_path):
    path = saved(tmp_path / "a.h5", "h5", mag=np.arange(7))
    with h5py.File(path, "r+") as file:
        file["both"] = np.zeros(7, [("x", "f4"), ("y", "i4")])
        file.create_dataset("to", data=[file["mag"].ref] * 7, dtype=h5py.ref_dtype)
        file.create_dataset("lists", (7,), h5py.vlen_dtype(np.int32))
        file["nothing"] = h5py.Empty("f4")
        file["text"] = np.array([b"a", b"\xff", b"c", b"", b"e", b"f", b"g"])
    source = open_source(path, needed=GRI)
    for name in ("both", "to", "lists", "nothing"):
        assert f"`{name}` is of" in source.description and name not in source.table.colnames
    assert "mag" in source.table.colnames and "text" in source.table.colnames
    odd = np.zeros(7, [("x", "f4")])
    refused(saved(tmp_path / "b.h5", "h5", id=odd), "`id` is of the type")


def test_pickled_objects_are_named_and_never_loaded(tmp_path):
    texts = np.array([f"a{row}" for row in range(7)], object)
    path = saved(tmp_path / "a.npz", "npz", notes=texts)
    source = open_source(path, needed=GRI)
    assert "`notes` cannot be read: it holds pickled" in source.description
    refused(saved(tmp_path / "b.npz", "npz", id=texts), "`id` cannot be read", "pickled")
    np.savez(tmp_path / "c.npz", images=np.array([[{}]]))
    refused(tmp_path / "c.npz", "`images` cannot be read", "pickled", "numpy.savez(FILE, images=")
    (tmp_path / "d.npz").write_bytes(b"\x80\x04\x95 garbage")
    refused(tmp_path / "d.npz", "is no .npz file", "numpy.savez(FILE, images=")
    (tmp_path / "e.npy").write_bytes(b"garbage")
    refused(tmp_path / "e.npy", "is no .npy file")
    for name in "abcde":
        (path,) = tmp_path.glob(f"{name}.*")
        try:
            open_source(path, needed=GRI)
        except UsageError as error:
            assert "allow_pickle" not in str(error) and "unsafe" not in str(error)


def test_an_npz_that_the_memory_does_not_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "host_bytes_left", lambda: 1000)
    refused(saved(tmp_path / "a.npz", "npz"), "more than the memory that is left", ".npy")


@pytest.mark.parametrize("form", ["h5", "zarr", "npz"])
@pytest.mark.parametrize("said", ["g,r,i", "g, r, i", "g r i", ["g", "r", "i"], b"g,r,i"])
def test_bands_in_one_text(tmp_path, form, said):
    path = saved(tmp_path / f"a.{form}", form, **({"bands": said} if form == "npz" else {}))
    if form == "h5":
        with h5py.File(path, "r+") as file:
            file.attrs["bands"] = said
    if form == "zarr":
        text = said.decode() if isinstance(said, bytes) else said
        zarr.open_group(path, mode="r+").attrs["bands"] = text
    source = open_source(path, needed=("i", "g"))
    np.testing.assert_array_equal(source[2].image, IMAGES[2][..., [2, 0]])


def test_pixel_scales_that_are_none(tmp_path):
    for number, scale in enumerate(([0.2, 0.3], "fine", -1.0, np.nan)):
        path = saved(tmp_path / f"{number}.npz", "npz", pixel_scale=np.array(scale))
        refused(path, "is no pixel scale: it must be one number")
    assert open_source(path, needed=GRI, pixel_scale=0.5)[0].pixel_scale == 0.5
    same = saved(tmp_path / "same.npz", "npz", pixel_scale=np.full(7, 0.25))
    assert open_source(same, needed=GRI)[0].pixel_scale == 0.25


# --- damage, and sizes that no file has ---


def test_one_damaged_chunk_is_some_rejected_rows(store, tmp_path):
    chunks = sorted(path for path in store.rglob("*") if path.name[0] in "01c" and path.is_file())
    chunks[1].write_bytes(b"no chunk")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("images", data=IMAGES, chunks=(3, 6, 5, 3), compression="gzip")
        where = made.id.get_chunk_info(1)
    with open(tmp_path / "a.h5", "r+b") as raw:
        raw.seek(where.byte_offset)
        raw.write(b"no chunk")
    for path in (store, tmp_path / "a.h5"):
        source = open_source(path, needed=GRI)
        rows = list(batches(source, [preprocessing(5, None, GRI)], how="resize", batch_size=4))
        readable = np.concatenate([batch.readable[: batch.count] for batch in rows])
        assert readable.tolist() == [True] * 3 + [False] * 3 + [True]
        reasons = [reason for batch in rows for reason in batch.reasons[: batch.count]]
        assert all(len(reason) > 5 for reason in reasons[3:6]) and not any(reasons[:3])
        np.testing.assert_array_equal(source[6].image, IMAGES[6])


def hdf5_of(path, shape, **how):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", shape, "f4", **how)[:3, :6, :5] = IMAGES[:3]


def test_a_stack_that_is_said_to_be_absurdly_long_is_refused_at_once(tmp_path):
    count = 10**12
    shape = (count, 6, 5, 3)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    made = group.create_array("images", shape=shape, chunks=(3, 6, 5, 3), dtype="f4")
    made[:3] = IMAGES[:3]
    hdf5_of(tmp_path / "a.h5", shape, chunks=(3, 6, 5, 3))
    fits.writeto(tmp_path / "a.fits", IMAGES[..., 0])
    content = (tmp_path / "a.fits").read_bytes()
    number = f"NAXIS3  = {7:>20}".encode()
    (tmp_path / "a.fits").write_bytes(content.replace(number, f"NAXIS3  = {count:>20}".encode()))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
    npy = (header % str(shape).encode()).ljust(127) + b"\n" + IMAGES.tobytes()
    (tmp_path / "a.npy").write_bytes(npy)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", npy)
    tracemalloc.start()
    try:
        for name in ("a.zarr", "a.h5"):
            refused(tmp_path / name, f"said to hold {count} cutouts", "room to list")
        refused(tmp_path / "a.npy", "cannot be read")
        with pytest.raises((UsageError, Unreadable), match="buffer is too small|too large"):
            open_source(tmp_path / "a.fits", needed=("g",))[0]
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()
    # NumPy asks for all of it, and touches none.
    refused(tmp_path / "a.npz", "cannot be read")


def test_chunks_and_cutouts_too_large_to_be_read_are_refused(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("images", shape=(10**6, 60, 50, 3), chunks=(10**6, 60, 50, 3), dtype="f4")
    refused(tmp_path / "a.zarr", "chunks of 1000000 x 60 x 50 x 3 are too large")
    hdf5_of(tmp_path / "a.h5", (4, 10**6, 10**6, 3), chunks=(1, 64, 64, 3))
    refused(tmp_path / "a.h5", "--max-values")


def test_stacks_with_room_for_more_are_read(tmp_path):
    """Cutouts that were not written are zero."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    made = group.create_array("images", shape=(10**5, 6, 5, 3), chunks=(3, 6, 2, 3), dtype="f4")
    made[:3] = IMAGES[:3]
    hdf5_of(tmp_path / "a.h5", (10**5, 6, 5, 3), chunks=(3, 6, 2, 3))
    for name in ("a.zarr", "a.h5"):
        source = open_source(tmp_path / name, needed=GRI)
        assert len(source) == 10**5
        np.testing.assert_array_equal(source[1].image, IMAGES[1])
        with pytest.raises(Unreadable, match="all pixels are equal"):
            source[9999]


def test_damaged_values_beside_the_images_are_one_clear_line():
    class Damaged:
        shape = (7,)

        def __getitem__(self, rows):
            raise OSError("actual len exceeds EOA")

    damaged = Arrays(IMAGES, {"flux": Damaged()})
    with pytest.raises(UsageError, match="`flux` cannot be decoded: actual len exceeds EOA"):
        source_of_arrays(damaged, Path("a.h5"), parse(None, None))
