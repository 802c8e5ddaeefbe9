"""Every kind of data that docs/usage.md lists, by its own example: the same cutouts, the same
scores."""

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from astropy.io import fits
from astropy.table import Table

from lensjax.cli import infer
from tests.cli.conftest import CUTOUTS

pytestmark = pytest.mark.usefixtures("undrawn")
BANDS = ("g", "r", "i")


def documented() -> list[str]:
    """Returns the examples of the table, as a shell hands them on."""
    usage = Path("docs/usage.md").read_text()
    return [found.strip("'") for found in re.findall(r"\| `--data ([^`]+)` \|", usage)]


def folder(images: np.ndarray) -> None:
    Path("cutouts").mkdir()
    for row, image in enumerate(images):
        np.save(f"cutouts/{row:02d}.npy", image)


def catalogue(images: np.ndarray) -> None:
    folder(images)
    paths = [f"cutouts/{row:02d}.npy" for row in range(len(images))]
    Table({"id": np.arange(len(images)), "path": paths}).write("list.csv")


def stack(images: np.ndarray) -> None:
    np.savez("images.npz", images=images, bands=np.array(BANDS))


def hdf5(images: np.ndarray) -> None:
    with h5py.File("cutouts.h5", "w") as file:
        file["images"] = images
        file.attrs["bands"] = BANDS


def zarr_and_catalogue(images: np.ndarray) -> None:
    group = zarr.open_group("survey.zarr", mode="w")
    group.create_array("images", shape=images.shape, dtype="f4")[...] = images[::-1]
    rows = np.arange(len(images))
    Table({"idx_in_zarr": rows[::-1], "id": rows}).write("survey.parquet")


def shards(images: np.ndarray) -> None:
    stack(images)
    infer.main(["--data", "images.npz", "--pack", "packed"])


def extensions(images: np.ndarray) -> None:
    hdus = [fits.ImageHDU(images[0, ..., band], name=name) for band, name in enumerate(BANDS)]
    hdus.insert(1, fits.ImageHDU(images[0, ..., 0], name="g_PSF"))
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto("galaxy.fits")


def file_a_band(images: np.ndarray) -> None:
    Path("des").mkdir()
    for band, name in enumerate(BANDS):
        fits.writeto(f"des/{name}.fits", images[..., band])


MADE: dict[str, Callable[[np.ndarray], None]] = {
    "cutouts": folder,
    "list.csv": catalogue,
    "images.npz": stack,
    "cutouts.h5": hdf5,
    "survey.zarr": zarr_and_catalogue,
    "packed": shards,
    "galaxy.fits": extensions,
    "des/{band}.fits": file_a_band,
}


@pytest.fixture(scope="module")
def expected(members, images, tmp_path_factory) -> np.ndarray:
    """The scores of the cutouts as an array on disk."""
    path = tmp_path_factory.mktemp("plain")
    np.save(path / "images.npy", images)
    return scores(members, path / "images.npy", path / "results")


def scores(members: Path, data: Path | str, output: Path) -> np.ndarray:
    given = ("--checkpoints", members, "--data", data, "--output", output, "--bands", "g,r,i")
    infer.main(["--ensemble", "vit_s16", "--batch-size", "8", *map(str, given)])
    with np.load(output / "predictions.npz", allow_pickle=False) as found:
        return found["ensemble_logits"]


def test_every_row_of_the_table_is_tried():
    # Of tiles the cutouts are cut: `test_tiles` tries them.
    assert documented() == [*MADE, "tiles.csv --catalogue objects.parquet"]


@pytest.mark.parametrize("example", MADE)
def test_what_is_documented_works(
    example, members, images, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    MADE[example](images)
    found = scores(members, example, tmp_path / "results")
    count = 1 if example == "galaxy.fits" else CUTOUTS
    assert f"{count} scored + 0 rejected = {count} given" in capsys.readouterr().out
    np.testing.assert_allclose(found, expected[:count], rtol=1e-5, atol=1e-6)
