"""What the benchmark of unlike cutouts makes, counts and prints."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

import lensjax
from benchmarks import unlike
from lensjax.ensemble import checkpoint
from lensjax.errors import UsageError
from tests import networks
from tests.ensemble.members import random_member

PUBLISHED = Path(__file__).parents[2] / "checkpoints" / "resnet18" / "0"
COUNT, SIDE = 6, 64


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    with networks.small():
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A small network that knows the pixels that the networks of the repository know."""
    folder = tmp_path_factory.mktemp("checkpoints")
    member = random_member("vit_ti16", 0, checkpoint.read_info(PUBLISHED).preprocessing)
    member = dataclasses.replace(member, pixels=checkpoint.read_pixels(PUBLISHED))
    checkpoint.save_member(folder / "vit_ti16" / "0", member)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Galaxies on a noisy sky, in two of the sets."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    light = 150 * np.exp(-np.hypot(x, y) / 5)[..., None] * [1, 0.8, 0.5]
    flux = light + rng.normal(12, 6, (COUNT, SIDE, SIDE, 3))
    (folder / "legacy_thumbs").mkdir()
    for row, image in enumerate(np.clip(flux, 0, 255).astype(np.uint8)):
        Image.fromarray(image).save(folder / "legacy_thumbs" / f"{row}.png")
    (folder / "des_lrg_grizY").mkdir()
    for channel, band in enumerate("irg"):
        fits.writeto(folder / "des_lrg_grizY" / f"{band}.fits", flux[..., channel] - 12)
    return folder


def test_noise_and_photographs_are_told_from_galaxies_and_all_are_counted(checkpoints, images):
    finder = lensjax.load_ensemble(checkpoints, mc_samples=1)
    (info,) = finder.members.values()
    found = unlike.told(finder, unlike.real_kinds(images, info.preprocessing.bands))
    for column in ("real fluxes", "real pictures"):
        assert found["noise alone", column] == (COUNT, COUNT, 0)
        assert found[unlike.AS_THEY_ARE, column] == (0, COUNT, 0)
    assert ("4 times as bright", "real fluxes") not in found
    pieces = unlike.photographs(info.preprocessing)
    assert pieces.images.shape == (120, SIDE, SIDE, 3)  # of two photographs of 427 x 640
    told = unlike.told(finder, [unlike.Kind("photographs", "pictures", pieces)])
    assert told["photographs", "pictures"].unlike > 100


def test_odd_cutouts_are_what_their_names_say():
    picture = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3))
    odd = {
        kind.row: kind.cutouts.images
        for kind in unlike.odd_kinds("", lensjax.Cutouts(picture, ("i", "r", "g")))
    }
    np.testing.assert_array_equal(odd["negatives"], 255 - picture)
    np.testing.assert_array_equal(odd["bands in reverse order"][..., 0], picture[..., 2])
    np.testing.assert_array_equal(odd["4 times as bright"], np.minimum(4 * picture, 255))
    flux = picture - 100.5
    odd = {
        kind.row: kind.cutouts.images
        for kind in unlike.odd_kinds("", lensjax.Cutouts(flux, ("g", "r", "i")))
    }
    assert len(odd) == 3
    np.testing.assert_array_equal(odd["negatives"], -flux)


def test_the_table_has_shares_with_their_counts():
    found = {
        ("plain", "fluxes"): unlike.Told(1, 4),
        ("noise", "pictures"): unlike.Told(3, 3, 2),
    }
    assert list(unlike.table(found)) == [
        "| | fluxes | pictures |",
        "|---|---|---|",
        "| plain | 25 % of 4 | - |",
        "| noise | - | 100 % of 3, 2 rejected |",
    ]


def test_a_folder_without_any_set_is_one_line(checkpoints, tmp_path):
    with pytest.raises(UsageError, match="holds none of the sets"):
        list(unlike.real_kinds(tmp_path, ("g", "r", "i")))


@pytest.mark.slow
def test_the_command_prints_each_kind_of_the_simulated_sky(checkpoints, images, capsys):
    words = ("--images", images, "--checkpoints", checkpoints, "--count", 4)
    unlike.main([str(word) for word in words])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0].removeprefix("| "): line[1:] for line in lines}
    assert {*unlike.OF_ARTEFACTS.values(), "Euclid's, 10 arcsec across"} <= rows.keys()
    scored = [re.findall(r"of (\d+)", rows[name][0]) for name in unlike.OF_ARTEFACTS.values()]
    assert sum(int(number) for (number,) in scored) == 4 * len(unlike.OF_ARTEFACTS)
    assert all(rows["noise alone"][column].startswith("100 %") for column in (0, 1))
