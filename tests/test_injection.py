"""Arcs in real cutouts: as bright as the catalogue says, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from lensjax.cutouts import Cutouts
from lensjax.errors import UsageError
from lensjax.injection import (
    Hosts,
    calibrated_survey,
    find_hosts,
    inject,
    survey_of_hosts,
    with_all_lenses,
)
from lensjax.sky import draw
from lensjax.sky.kinds import KINDS
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import GROUND

SIZE, SCALE, FLUX = 48, 0.2, 3000.0
SIGMA = np.array(GROUND.sky_sigma)


def galaxies(count=6, flux=FLUX):
    """Round Gaussian galaxies of sigma half an arcsec on a noisy sky of level 7."""
    axis = SCALE * (np.arange(SIZE) - (SIZE - 1) / 2)
    light = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / 0.5**2)
    noise = np.random.default_rng(0).normal(7.0, SIGMA, (count, SIZE, SIZE, 3))
    return (noise + flux * (light / light.sum())[..., None]).astype(np.float32)


def source(images, **columns):
    return Cutouts(images, ("g", "r", "i"), SCALE, columns).source(("g", "r", "i"))


@pytest.fixture(scope="module")
def survey():
    every = with_all_lenses(calibrated_survey(GROUND, None))
    return replace(every, arc_snr=5.0, einstein_radius=0.4)


def test_hosts_have_a_galaxy_of_known_magnitude_and_all_others_are_counted(survey):
    images = np.concatenate([galaxies(), galaxies(1, flux=0.0), galaxies(2)])
    images[7, 20:28, 20:28] = np.nan
    images[8] = 3.0
    label = [1, 0, 0, 0, 0, 0, 0, 0, 0]
    hosts = find_hosts(source(images, label=label), survey, 20, 0)
    assert hosts.id.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(hosts.images, images[1:6])
    assert len(hosts.id) + sum(hosts.left_out.values()) == 9
    assert hosts.left_out["labelled as lenses"] == 1
    # All but exp(-8) of the light is within two arcsec.
    np.testing.assert_allclose(hosts.magnitude, 30 - 2.5 * np.log10(FLUX), atol=0.1)
    assert len(find_hosts(source(images), survey, 4, 0).id) <= 4


def test_zero_points_are_those_of_the_cutouts(survey):
    fainter = calibrated_survey(GROUND, "25,25,25")
    hosts = find_hosts(source(0.01 * galaxies()), fainter, 9, 0)
    np.testing.assert_allclose(hosts.magnitude, 30 - 2.5 * np.log10(FLUX), atol=0.1)
    np.testing.assert_allclose(fainter.gains, 100 * np.array(GROUND.gains))
    with pytest.raises(UsageError, match="0.01[0-2] times as noisy .* --zero-point"):
        find_hosts(source(0.01 * galaxies()), survey, 9, 0)
    for wrong in ("25,25", "bright", "nan"):
        with pytest.raises(UsageError, match="--zero-point"):
            calibrated_survey(GROUND, wrong)


def test_what_cannot_host_is_refused(survey):
    pictures = np.clip(galaxies(), 0, 255).round()
    with pytest.raises(UsageError, match="8 bits"):
        find_hosts(source(pictures), survey, 9, 0)
    with pytest.raises(UsageError, match="6 without a galaxy seen"):
        find_hosts(source(galaxies(flux=0.0)), survey, 9, 0)
    with pytest.raises(UsageError, match="square"):
        find_hosts(source(galaxies()[:, :40]), survey, 9, 0)


@pytest.fixture(scope="module")
def quiet(survey):
    """Hosts, and a survey with a sharp PSF and so many electrons that photons make no noise, with a
    source of one colour: an arc has one magnification."""
    images = galaxies()
    images[:, 0, 0] = np.nan
    stamp = np.zeros((1, 21, 21), np.float32)
    stamp[:, 8:13, 8:13] = 1 / 25
    hosts = Hosts(images, SCALE, np.arange(6) + 100, np.arange(6.0), {})
    sharp = replace(survey, gains=(1e12,) * 3, seeing=(0.3,) * 3)
    return hosts, sharp, Stamps(stamp, 0.05, np.array(["one"]))


def test_arcs_add_the_flux_that_the_catalogue_says(quiet):
    hosts, survey, stamps = quiet
    found = inject(hosts, survey, 32, 5, stamps)
    assert 24 <= len(found) <= 32
    host = np.asarray(found.columns["host"]) - 100
    np.testing.assert_array_equal(found.columns["lens_mag"], host)
    added = found.images - hosts.images[host]
    assert np.isnan(added[:, 0, 0]).all()
    ratio = np.nansum(added[..., 2], axis=(1, 2)) / 10 ** (0.4 * (30 - found.columns["arc_mag"]))
    # The PSF scatters some light over the edge, and back from beyond it.
    inside = np.asarray(found.columns["theta_e"]) < 1.5
    assert inside.sum() > 8
    np.testing.assert_allclose(ratio[inside], 1, atol=0.01)
    assert np.median(ratio) == pytest.approx(1, abs=0.01)
    again = inject(hosts, survey, 32, 5, stamps)
    np.testing.assert_array_equal(again.images, found.images)


def test_without_a_source_a_cutout_stays_as_it_is(quiet):
    hosts, survey, stamps = quiet
    images, rows = hosts.images[np.arange(16) % 6], np.arange(16)
    drawn, _ = draw.draw(
        survey_of_hosts(survey, hosts), index=rows, group=rows,
        kind=np.full(16, list(KINDS).index("red")), seed=0, backgrounds=images, sources=stamps,
        stamp_rows=np.zeros(16, int),
    )  # fmt: skip
    np.testing.assert_array_equal(drawn, images)


def test_calibrated_cutouts_keep_their_units_and_deeper_ones_have_more_electrons(survey):
    middle = draw.observe(np.full((draw.observation_uniforms(survey), 1), 0.5), survey)
    found = draw.observation_of(galaxies(1, flux=0.0) / 2, middle, calibrated=True)
    np.testing.assert_array_equal(found.zero_points, middle.zero_points)
    np.testing.assert_allclose(found.sky_sigma[:, 0], SIGMA / 2, rtol=0.05)
    np.testing.assert_allclose(found.gains, 4 * middle.gains, rtol=0.1)
