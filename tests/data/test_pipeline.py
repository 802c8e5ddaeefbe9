"""Batches: every row once, in order, whole, and the same for any number of threads or processes."""

import dataclasses
import multiprocessing
import os
import signal

import jax
import numpy as np
import pytest
from astropy.io import fits

from lensjax.data.brightness import LEVEL, measure
from lensjax.data.catalog import open_source
from lensjax.data.on_device import prepare
from lensjax.data.pipeline import batches, input_spec
from lensjax.data.planes import masked
from lensjax.data.preprocess import fill_masked, fit, geometry
from lensjax.errors import LensjaxError, UsageError
from tests.data.wanted import preprocessing

rng = np.random.default_rng(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven cutouts of two bands, of which two cannot be read; ids from the file names."""
    path = tmp_path_factory.mktemp("folder")
    for row in range(11):
        cube = np.random.default_rng(row).normal(size=(2, 12 + row % 3, 12)).astype(np.float32)
        cube[0, 2, 2] = np.nan
        fits.writeto(path / f"{row:02d}.fits", cube)
    (path / "03.fits").write_bytes(b"no")
    (path / "10.fits").write_bytes(b"")
    return path


PREPARATIONS = [preprocessing(8), preprocessing(16, 0.3, ("r",))]


look = jax.jit(prepare)


def everything(source, **options):
    defaults = {"how": "auto", "batch_size": 4, "threads": 2}
    return list(batches(source, PREPARATIONS, **{**defaults, **options}))


def assert_same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)


def test_full_batches_in_order_with_padding_and_reasons(folder):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    made = everything(source)
    assert [batch.count for batch in made] == [4, 4, 3]
    rows = np.concatenate([batch.rows for batch in made])
    assert rows.tolist() == [*range(11), -1] and rows.dtype == np.int64
    readable = np.concatenate([batch.readable for batch in made])
    assert np.flatnonzero(~readable).tolist() == [3, 10, 11]
    reasons = [reason for batch in made for reason in batch.reasons]
    assert [bool(reason) for reason in reasons] == [row in (3, 10) for row in range(12)]
    for batch in made:
        images, brightness = batch.inputs.images, batch.inputs.brightness
        assert [image_spec.shape for image_spec in images] == [(4, 8, 8, 2), (4, 16, 16, 1)]
        assert [each.shape for each in brightness] == [(4, 2, 4), (4, 1, 4)]
        for array in images:
            assert array.dtype == np.float32 and np.isfinite(array).all()
            np.testing.assert_array_equal(array[~batch.readable], 0.0)
        for array, image_spec in zip(look(batch.inputs), images, strict=True):
            assert array.shape == image_spec.shape and np.isfinite(array).all()
    assert made[0].masked.tolist() == [1, 1, 1, 0]
    assert made[0].actions[0].tolist() == ["cropped", "cropped", "cropped", ""]
    assert made[0].actions[1].tolist() == ["resampled", "resampled", "resampled", ""]


def test_each_preparation_gets_its_bands(folder):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    batch = everything(source)[1]
    cutout = source[5]
    made = geometry(cutout.image.shape[:2], cutout.pixel_scale, PREPARATIONS[1])
    red = fill_masked(cutout.image)[..., 1:]
    level = measure(red[None], made, (0,), "asinh")[0, :, LEVEL]
    np.testing.assert_array_equal(batch.inputs.images[1][1], fit(red, made, level))


@pytest.mark.parametrize("threads", [0, 1, 5, None])
def test_the_number_of_threads_changes_nothing(folder, threads):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    expected = everything(source)
    for one, other in zip(expected, everything(source, threads=threads), strict=True):
        assert_same(one, other)


def test_processes_change_nothing_and_leave_ctrl_c_to_the_one_that_they_read_for(folder):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    options = {"how": "auto", "batch_size": 1, "rows": range(1, 10)}
    made = batches(source, PREPARATIONS, **options, processes=2)
    # A batch of each process, so that both have started when they are interrupted.
    first = [next(made), next(made)]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    expected = batches(source, PREPARATIONS, **options)
    for one, other in zip(expected, [*first, *made], strict=True):
        assert_same(one, other)


def test_a_process_that_dies_is_one_clear_line(folder):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    # More batches than are read ahead: it cannot have ended before it is killed.
    read = batches(source, PREPARATIONS, how="auto", batch_size=1, processes=1)
    next(read)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(LensjaxError, match="a process that reads cutouts has died") as raised:
        list(read)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (4, 11), (5, 8), (11, 11)])
def test_some_of_the_rows_can_be_read_alone(folder, start, stop):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    made = everything(source, rows=range(start, stop))
    rows = [row for batch in made for row in batch.rows[: batch.count].tolist()]
    assert rows == list(range(start, stop))
    if start == 4:
        assert_same(made[0], everything(source)[1])


def test_places_from_the_table_come_before_those_of_the_file(tmp_path):
    header = fits.Header([("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRPIX1", 4.5)])
    header.update({"CRPIX2": 4.5, "CRVAL1": 30.0, "CRVAL2": -5.0, "CDELT1": -1e-4, "CDELT2": 1e-4})
    for name in "ab":
        fits.writeto(tmp_path / f"{name}.fits", rng.normal(size=(8, 8)), header)
    (tmp_path / "cat.csv").write_text("path,ra,dec\na.fits,1.5,2.5\nb.fits,,\nc.fits,7,8\n")
    source = open_source(tmp_path / "cat.csv", needed=("g",))
    (batch,) = batches(source, [preprocessing(8, bands=("g",))], how="auto", batch_size=4)
    np.testing.assert_allclose(batch.ra, [1.5, 30.0, 7.0, np.nan])
    np.testing.assert_allclose(batch.dec, [2.5, -5.0, 8.0, np.nan])


def test_members_of_one_grid_share_what_travels(folder):
    source = open_source(folder, needed=("g", "r"), pixel_scale=0.2)
    brighter = PREPARATIONS[0].normalised((1.0, 2.0), (3.0, 4.0))
    batch = next(batches(source, [*PREPARATIONS, brighter], how="auto", batch_size=4))
    assert len(batch.inputs.images) == 2
    np.testing.assert_array_equal(batch.actions[2], batch.actions[0])
    first, _, third = look(batch.inputs)
    np.testing.assert_allclose(third, (np.asarray(first) - [1.0, 2.0]) / [3.0, 4.0], atol=1e-6)


# --- stacks, which travel as they are ---


def saved(path, images, **beside):
    np.savez(path / "a.npz", images=images, bands=["g", "r", "i"], **beside)
    return open_source(path / "a.npz", needed=("g", "r", "i"), pixel_scale=0.2)


def as_files(path, images):
    """The same cutouts as a source of files, which the host fits."""
    (path / "files").mkdir()
    for row, image in enumerate(images):
        np.save(path / "files" / f"{row:03d}.npy", image)
    return open_source(path / "files", needed=("g", "r", "i"), pixel_scale=0.2)


def sky(dtype, count=9, shape=(20, 26)):
    images = np.random.default_rng(5).normal(60, 20, (count, *shape, 3))
    images[:, 8:12, 11:15] += 120
    whole = np.round(images.clip(1, 250)) if np.dtype(dtype).kind in "iu" else images
    return whole.astype(dtype)


MEMBERS = [
    preprocessing(16, bands=("g", "r")),
    preprocessing(16, 0.31, ("r", "g", "i")),
    preprocessing(40, bands=("g", "r", "i")),
]


@pytest.mark.parametrize("dtype", ["uint8", "float16", ">i2", "float64", ">i4"])
def test_a_stack_travels_once_and_looks_as_its_cutouts_in_files(tmp_path, dtype):
    images = sky(dtype)
    stack, files = saved(tmp_path, images), as_files(tmp_path, images)
    narrow = np.dtype(dtype).newbyteorder("=") if np.dtype(dtype).itemsize <= 2 else "float32"
    pairs = zip(
        batches(stack, MEMBERS, how="auto", batch_size=4),
        batches(files, MEMBERS, how="auto", batch_size=4),
        strict=True,
    )
    for whole, fitted in pairs:
        assert [(i.shape, i.dtype) for i in whole.inputs.images] == [((4, 20, 26, 3), narrow)]
        assert len(fitted.inputs.images) == len(MEMBERS)
        np.testing.assert_array_equal(whole.actions, fitted.actions)
        # One program for all types: `test_on_device` shows that these change nothing.
        wide = dataclasses.replace(
            whole.inputs, images=(whole.inputs.images[0].astype(np.float32),)
        )
        for one, other in zip(look(wide), look(fitted.inputs), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)


def test_masks_of_a_stack_are_those_of_its_cutouts(tmp_path):
    images = sky("float32", 8)
    images[1, 3, 4] = np.nan
    images[2, :, :5, 0] = -9999.0
    images[3, 10, 10, 1] = np.inf
    images[4] = np.nan
    images[5, ..., 2] = np.nan
    images[6, 2, 2:4] = images[6].min((0, 1))  # the lowest value twice is no mask by itself
    images[7, 0, 0] = 1e6  # nor is an outlier
    stack, files = saved(tmp_path, images), as_files(tmp_path, images)
    (whole,) = batches(stack, MEMBERS, how="auto", batch_size=9)
    (fitted,) = batches(files, MEMBERS, how="auto", batch_size=9)
    assert whole.reasons[4] == "no valid pixel" and whole.readable.sum() == 7
    for name in ("rows", "readable", "reasons", "masked", "actions"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(fitted, name))
    assert whole.masked.tolist()[:6] == [0, 3, 100, 1, 0, 520]
    for row in (0, 1, 2, 3, 5, 6, 7):
        planes = [masked(images[row, ..., band]) for band in range(3)]
        expected = fill_masked(np.stack(planes, -1))
        np.testing.assert_array_equal(whole.inputs.images[0][row], expected)
    np.testing.assert_array_equal(whole.inputs.images[0][[4, 8]], 0.0)
    for one, other in zip(whole.inputs.brightness, fitted.inputs.brightness, strict=True):
        np.testing.assert_allclose(one[..., LEVEL], other[..., LEVEL], rtol=1e-6)


@pytest.mark.parametrize("threads", [0, 3])
def test_a_stack_is_taken_up_at_any_row_and_left_at_any(tmp_path, threads):
    source = saved(tmp_path, sky("uint8"), ra=np.arange(9.0), dec=np.arange(9.0))
    some = range(2, 8)
    made = list(batches(source, MEMBERS, how="auto", batch_size=4, rows=some, threads=threads))
    assert [batch.count for batch in made] == [4, 2]
    assert [row for batch in made for row in batch.rows] == [*some, -1, -1]
    np.testing.assert_array_equal(made[1].ra, [6, 7, np.nan, np.nan])
    np.testing.assert_array_equal(made[1].inputs.images[0][:2], sky("uint8")[6:8])
    assert made[1].readable.tolist() == [True, True, False, False]


def test_the_layout_is_known_before_the_first_batch(tmp_path, folder):
    stack, files = saved(tmp_path, sky("uint8")), open_source(folder, needed=("g", "r"))
    for source, transforms in ((stack, MEMBERS), (files, PREPARATIONS)):
        known = input_spec(source, transforms, "auto").blank(4)
        batch = next(batches(source, transforms, how="auto", batch_size=4))
        assert jax.tree.structure(known) == jax.tree.structure(batch.inputs)
        for one, other in zip(jax.tree.leaves(known), jax.tree.leaves(batch.inputs), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_the_host_fits_what_would_travel_for_nothing(tmp_path):
    source = saved(tmp_path, sky("float32", 3, (90, 90)))
    small, large = (
        preprocessing(16, bands=("g", "r", "i")),
        preprocessing(64, bands=("g", "r", "i")),
    )
    assert input_spec(source, [small], "crop").image_specs[0].shape == (16, 16, 3)
    assert input_spec(source, [small, large], "crop").image_specs[0].shape == (90, 90, 3)


def test_a_stack_that_cannot_be_fitted_is_rejected_row_by_row(tmp_path):
    np.savez(tmp_path / "a.npz", images=sky("uint8", 3))
    source = open_source(tmp_path / "a.npz", needed=("g", "r", "i"))
    (batch,) = batches(source, MEMBERS[:2], how="resample", batch_size=4)
    assert not batch.readable.any() and batch.count == 3
    assert ["pixel scale not known" in reason for reason in batch.reasons] == [True] * 3 + [False]


def test_a_member_of_other_bands_is_refused(folder):
    source = open_source(folder, needed=("g", "r"))
    with pytest.raises(UsageError, match="needs bands z.*opened with g, r"):
        batches(source, [preprocessing(8, bands=("z",))], how="auto", batch_size=2)


def test_leaving_off_early_is_harmless(folder):
    source = open_source(folder, needed=("g", "r"))
    assert next(iter(batches(source, PREPARATIONS, how="resize", batch_size=3))).count == 3
