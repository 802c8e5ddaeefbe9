"""The simulated sky as its users see it."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from lensjax.errors import UsageError
from lensjax.sky import draw
from lensjax.sky.draw import simulate
from lensjax.sky.kinds import KINDS
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import DECAM, GROUND, observation_uniforms, observe

COUNT = 96
SMALL = replace(GROUND, name="small", size=24, artefact_fraction=0.2)


def named(stamps: np.ndarray, pixel_scale: float) -> Stamps:
    return Stamps(stamps, pixel_scale, np.array([f"galaxy-{row}" for row in range(len(stamps))]))


@pytest.fixture(scope="module")
def sky():
    return simulate(SMALL, count=COUNT, seed=4, chunk=16)


def test_images_and_truth_line_up(sky):
    assert sky.images.shape == (COUNT, 24, 24, 3) and sky.images.dtype == np.float32
    assert np.isfinite(sky.images).all()
    assert all(len(column) == COUNT for column in sky.truth.values())
    assert sky.truth["label"].sum() == COUNT / 2
    np.testing.assert_array_equal(sky.truth["label"] == 1, sky.truth["kind"] == "lens")
    assert set(sky.truth["kind"]) == set(KINDS)
    assert len(set(sky.truth["id"])) == COUNT
    assert 0.05 < (sky.truth["artefact"] != "").mean() < 0.4


def test_truth_is_given_where_it_applies(sky):
    lens, kind = sky.truth["label"] == 1, sky.truth["kind"]
    for name in draw.OF_LENS:
        np.testing.assert_array_equal(np.isfinite(sky.truth[name]), lens)
    assert np.isfinite(sky.truth["lens_redshift"][kind == "red"]).all()
    assert np.isnan(sky.truth["lens_redshift"][kind == "spiral"]).all()
    scale, seeing = sky.truth["true_pixel_scale"], sky.truth["seeing_r"]
    assert 0.16 <= scale.min() < 0.18 and 0.28 < scale.max() <= 0.301
    assert 0.49 < seeing.min() < 0.65 and 1.15 < seeing.max() < 1.41


def test_lenses_can_be_seen(sky):
    lens = sky.truth["label"] == 1
    snr, radius = sky.truth["arc_snr"][lens], sky.truth["einstein_radius"][lens]
    assert snr.min() > 0.999 * SMALL.arc_snr and snr.max() < 20.01 * SMALL.arc_snr
    assert (radius >= 0.6).mean() > 0.9
    assert (sky.truth["arc_extent"][lens] > 1.3).mean() > 0.85
    assert np.median(sky.truth["magnification"][lens]) > 2


def test_each_unlensed_galaxy_has_a_lensing_twin(sky):
    kind, group = sky.truth["kind"], sky.truth["group"]
    for twin in np.flatnonzero(kind == "unlensed"):
        lens = np.flatnonzero((group == group[twin]) & (kind == "lens"))[0]
        for name in ("lens_magnitude", "source_redshift", "true_pixel_scale", "sky_sigma_g"):
            assert sky.truth[name][twin] == sky.truth[name][lens]
    others = kind != "unlensed"
    assert len(set(group[others])) == others.sum()


def test_a_seed_makes_the_images_and_not_the_chunk(sky):
    again = simulate(SMALL, count=COUNT, seed=4, chunk=16)
    np.testing.assert_array_equal(again.images, sky.images)
    part = simulate(SMALL, count=16, seed=5, chunk=16)
    assert not np.allclose(part.images, sky.images[:16])


def test_a_sky_without_lenses_is_drawn_too():
    survey = replace(SMALL, shares=(("star", 1.0),))
    sky = simulate(survey, count=3, lens_fraction=0.0, seed=1, chunk=16)
    assert (sky.truth["kind"] == "star").all() and np.isfinite(sky.images).all()
    assert np.isnan(sky.truth["einstein_radius"]).all()


@pytest.mark.slow
def test_a_noise_free_sky_is_the_same_without_noise(sky):
    bare = simulate(replace(SMALL, noise=False), count=COUNT, seed=4, chunk=32)
    sigma = np.stack([bare.truth[f"sky_sigma_{band}"] for band in SMALL.bands], -1)
    left = (sky.images - bare.images) / sigma[:, None, None]
    assert np.median(left.std(axis=(1, 2))) == pytest.approx(1, abs=0.15)
    np.testing.assert_array_equal(bare.images == 0, sky.images == 0)
    np.testing.assert_allclose(bare.truth["arc_snr"], sky.truth["arc_snr"], rtol=1e-3)


@pytest.mark.slow
def test_arcs_on_backgrounds_and_untouched_twins():
    survey = replace(DECAM, name="small", size=24)
    rng = np.random.default_rng(0)
    backgrounds = rng.normal(0, 3, (8, 24, 24, 3)).astype(np.float32)
    backgrounds[:, :4, :4] = np.nan
    stamps = rng.random((3, 21, 21))
    stamps /= stamps.sum(axis=(1, 2), keepdims=True)
    ticks: list[int] = []
    sky = simulate(
        survey, count=16, seed=1, chunk=8, backgrounds=backgrounds,
        sources=named(stamps, 0.05), progress=ticks.append,
    )  # fmt: skip
    assert sum(ticks) == 16
    lens = sky.truth["label"] == 1
    assert lens.sum() == 8
    np.testing.assert_array_equal(sky.images[~lens], backgrounds[sky.truth["group"][~lens]])
    assert set(sky.truth["group"][lens]) == set(sky.truth["group"][~lens])
    added = sky.images[lens] - backgrounds[sky.truth["group"][lens]]
    assert np.isnan(added[:, :4, :4]).all()
    assert (np.nansum(added, axis=(1, 2)) > 0).all()
    assert np.isnan(sky.truth["lens_magnitude"][~lens]).all()
    shown = [f"galaxy-{group % 3}" for group in sky.truth["group"]]
    np.testing.assert_array_equal(sky.truth["source"], np.where(lens, shown, ""))


def test_a_real_cutout_tells_its_noise_and_its_units():
    rng = np.random.default_rng(0)
    sigma = 0.1 * np.array(GROUND.sky_sigma)
    cutouts = (5.0 + sigma * rng.normal(size=(1, 64, 64, 3))).astype(np.float32)
    cutouts[:, :3] = np.nan
    middle = observe(np.full((observation_uniforms(GROUND), 1), 0.5), GROUND)
    found = draw.observation_of(cutouts, middle)
    np.testing.assert_allclose(found.sky_sigma[:, 0], sigma, rtol=0.05)
    np.testing.assert_allclose(found.zero_points, 30 - 2.5, atol=0.05)
    np.testing.assert_allclose(found.gains, 150, rtol=0.05)


@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_assignment_keeps_its_shares(count, lens_fraction, seed):
    assigned = draw.assign(GROUND, count, lens_fraction, seed)
    lenses = assigned.kind == list(KINDS).index("lens")
    assert lenses.sum() == round(count * lens_fraction)
    assert len(assigned.kind) == len(assigned.group) == count
    assert len(set(assigned.group[lenses])) == lenses.sum()
    others = count - lenses.sum()
    for name, share in GROUND.shares:
        assert abs((assigned.kind == list(KINDS).index(name)).sum() - share * others) <= 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(count=0), "count"),
        (dict(lens_fraction=1.5), "lens_fraction"),
        (dict(backgrounds=np.zeros((4, 20, 20, 3))), "backgrounds have shape"),
        (dict(backgrounds=np.zeros((4, 24, 24, 3)), count=20), "look-alikes"),
        (dict(sources=named(np.ones((2, 8, 9)), 0.1)), "stamps"),
        (dict(sources=named(np.full((2, 8, 8), 1 / 64), 0.0)), "pixel scale"),
        (dict(sources=named(np.ones((2, 8, 8)), 0.1)), "sum to one"),
    ],
)
def test_wrong_use_is_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        simulate(SMALL, **{"count": 4, "seed": 0, **arguments})
    assert "\n" not in str(error.value)
