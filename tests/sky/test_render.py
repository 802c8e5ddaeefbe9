"""The camera against integrals, and the simulated sky as its users see it."""

from dataclasses import replace
from types import SimpleNamespace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.integrate import dblquad

from lensjax.errors import UsageError
from lensjax.sky import render
from lensjax.sky.population import einstein_radius_limits
from lensjax.sky.render import DECAM, simulate
from lensjax.sky.scenes import KINDS, Points
from lensjax.sky.stamps import Stamps

# In one process, which makes once what the tests share.
pytestmark = pytest.mark.xdist_group("render")

SMALL = replace(DECAM, name="small", size=32)
FWHM = jnp.asarray([4.2, 3.6, 3.3])


def gaussians(radius, fwhm):
    """The PSF at a distance in pixels."""
    sigmas = np.array(render.PSF_SIGMAS) * fwhm
    return sum(
        weight * np.exp(-(radius**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
        for weight, sigma in zip(render.PSF_WEIGHTS, sigmas, strict=True)
    )


def named(stamps: np.ndarray, pixel_scale: float) -> Stamps:
    return Stamps(stamps, pixel_scale, np.array([f"galaxy-{row}" for row in range(len(stamps))]))


@pytest.fixture(scope="module")
def sky():
    return simulate(SMALL, count=90, seed=4, chunk=32)


def test_psf_is_nearly_a_moffat():
    beta, radius = 3.0, np.linspace(0, 4, 400)
    scale = 0.5 / np.sqrt(2 ** (1 / beta) - 1)
    moffat = (beta - 1) / (np.pi * scale**2) * (1 + (radius / scale) ** 2) ** -beta
    assert np.abs(gaussians(radius, 1.0) - moffat).max() < 0.004 * moffat.max()
    assert sum(render.PSF_WEIGHTS) == pytest.approx(1)


def test_flux_survives_psf_and_pixels():
    fine = render.SUPERSAMPLING * (DECAM.size + 2 * render.MARGIN)
    light = jnp.zeros((3, fine, fine)).at[:, fine // 2, fine // 2 + 5].set(1.0)
    image = render.blur(light, FWHM, DECAM)
    np.testing.assert_allclose(image.sum(axis=(0, 1)), 1.0, atol=2e-4)


def test_even_light_stays_even_but_for_the_edges():
    fine = render.SUPERSAMPLING * (DECAM.size + 2 * render.MARGIN)
    image = render.blur(jnp.full((3, fine, fine), 0.25), FWHM, DECAM)
    np.testing.assert_allclose(image[16:-16, 16:-16], 1.0, atol=2e-3)
    assert image[0, 0].min() > 0.6


def test_one_sample_is_imaged_like_a_star_at_its_place():
    x, y = render.fine_grid(SMALL)
    light = jnp.zeros((3, *x.shape)).at[:, 30, 41].set(2.0)
    star = Points(jnp.full((1, 3), 2.0), x[30, 41][None], y[30, 41][None])
    np.testing.assert_allclose(
        render.blur(light, FWHM, SMALL), render.star_images(star, FWHM, SMALL), atol=1e-6
    )


def test_star_is_the_integral_of_the_psf_over_each_pixel():
    position = np.array([0.31, -0.52])
    star = Points(jnp.ones((1, 3)), jnp.asarray(position[:1]), jnp.asarray(position[1:]))
    image = render.star_images(star, FWHM, SMALL)
    in_pixels = position / SMALL.pixel_scale + (SMALL.size - 1) / 2
    for row, column in [(14, 16), (13, 17), (20, 10)]:
        expected = dblquad(
            lambda y, x: gaussians(np.hypot(x - in_pixels[0], y - in_pixels[1]), float(FWHM[1])),
            column - 0.5, column + 0.5, row - 0.5, row + 0.5,
        )[0]  # fmt: skip
        assert float(image[row, column, 1]) == pytest.approx(expected, rel=1e-3)


def test_noise_has_unit_variance_and_the_correlation_of_coadds():
    noise = np.asarray(render.unit_noise(jax.random.key(0), DECAM))[4:-4, 4:-4]
    assert noise.std() == pytest.approx(1, abs=0.02)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean() / (noise**2).mean()
    assert neighbours == pytest.approx(0.25, abs=0.03)


def test_images_and_truth_line_up(sky):
    assert sky.images.shape == (90, 32, 32, 3) and sky.images.dtype == np.float32
    assert np.isfinite(sky.images).all()
    assert all(len(column) == 90 for column in sky.truth.values())
    assert sky.truth["label"].sum() == 45
    np.testing.assert_array_equal(sky.truth["label"] == 1, sky.truth["kind"] == "lens")
    assert set(sky.truth["kind"]) == set(KINDS)
    assert len(set(sky.truth["id"])) == 90


def test_truth_is_given_where_it_applies(sky):
    lens = sky.truth["label"] == 1
    for name in ("einstein_radius", "magnification", "shear", "arc_signal_to_noise"):
        np.testing.assert_array_equal(np.isfinite(sky.truth[name]), lens)
    assert np.isfinite(sky.truth["lens_redshift"][sky.truth["kind"] == "red"]).all()
    assert np.isnan(sky.truth["lens_redshift"][sky.truth["kind"] == "spiral"]).all()


def test_lenses_can_be_found(sky):
    lens = sky.truth["label"] == 1
    assert sky.truth["arc_signal_to_noise"][lens].min() > 0.999 * DECAM.smallest_arc_signal_to_noise
    smallest, largest = einstein_radius_limits(SMALL)
    radius = sky.truth["einstein_radius"][lens]
    assert (radius > smallest).all() and (radius < largest).all()
    assert np.median(sky.truth["magnification"][lens]) > 2


def test_each_unlensed_galaxy_has_a_lensing_twin(sky):
    kind, group = sky.truth["kind"], sky.truth["group"]
    assert set(group[kind == "unlensed"]) <= set(group[kind == "lens"])
    for twin in np.flatnonzero(kind == "unlensed"):
        lens = np.flatnonzero((group == group[twin]) & (kind == "lens"))[0]
        assert sky.truth["lens_magnitude"][twin] == sky.truth["lens_magnitude"][lens]
        assert sky.truth["source_redshift"][twin] == sky.truth["source_redshift"][lens]
    others = ~np.isin(kind, ["unlensed"])
    assert len(set(group[others])) == others.sum()


def test_noise_and_edges_tell_no_classes_apart(sky):
    lens = sky.truth["label"] == 1
    steps = np.median(np.abs(np.diff(sky.images, axis=1)), axis=(1, 2))
    np.testing.assert_allclose(steps[lens].mean(0), steps[~lens].mean(0), rtol=0.12)


@pytest.mark.slow
def test_seed_and_not_chunk_makes_the_images(sky):
    again = simulate(SMALL, count=90, seed=4, chunk=48)
    np.testing.assert_allclose(again.images, sky.images, rtol=1e-4, atol=1e-2)
    for name, column in sky.truth.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(again.truth[name], column, rtol=1e-4)
        else:
            np.testing.assert_array_equal(again.truth[name], column)
    same = simulate(SMALL, count=90, seed=4, chunk=32)
    np.testing.assert_array_equal(same.images, sky.images)
    other = simulate(SMALL, count=32, seed=5, chunk=32)
    assert not np.allclose(other.images[:32], sky.images[:32])


def test_arcs_on_backgrounds_and_untouched_twins():
    rng = np.random.default_rng(0)
    backgrounds = rng.normal(0, 3, (8, 32, 32, 3)).astype(np.float32)
    backgrounds[:, :4, :4] = np.nan
    stamps = rng.random((3, 21, 21))
    stamps /= stamps.sum(axis=(1, 2), keepdims=True)
    ticks: list[int] = []
    sky = simulate(
        SMALL, count=16, seed=1, chunk=8, backgrounds=backgrounds,
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


def test_stamp_keeps_its_flux_wherever_it_is_turned():
    stamp = jnp.zeros((15, 15)).at[4:11, 5:10].set(1 / 35)
    x, y = render.fine_grid(DECAM)
    for angle in (0.0, 0.4, 2.0):
        source = SimpleNamespace(flux=jnp.ones((1, 3)), x=jnp.full(1, 0.6), y=jnp.full(1, -0.35))
        scene = SimpleNamespace(source=source, stamp_angle=angle)
        light = render.stamp_light(x, y, scene, stamp, 0.2)[0]
        step = DECAM.pixel_scale / render.SUPERSAMPLING
        assert float(light.sum()) * step**2 == pytest.approx(1, abs=0.03)
        assert float((x * light).sum() / light.sum()) == pytest.approx(0.6, abs=0.02)
        assert float((y * light).sum() / light.sum()) == pytest.approx(-0.35, abs=0.02)


@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_plan_keeps_its_shares(count, lens_fraction, seed):
    plan = render.plan(count, lens_fraction, seed)
    lenses = plan.kind == list(KINDS).index("lens")
    assert lenses.sum() == round(count * lens_fraction)
    assert len(plan.kind) == len(plan.group) == count
    assert len(set(plan.group[lenses])) == lenses.sum()
    others = count - lenses.sum()
    unlensed = (plan.kind == list(KINDS).index("unlensed")).sum()
    assert abs(unlensed - render.LOOK_ALIKES["unlensed"] * others) <= 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(count=0), "count"),
        (dict(lens_fraction=1.5), "lens_fraction"),
        (dict(backgrounds=np.zeros((4, 20, 20, 3))), "backgrounds have shape"),
        (dict(backgrounds=np.zeros((4, 32, 32, 3)), count=20), "look-alikes"),
        (dict(sources=named(np.ones((2, 8, 9)), 0.1)), "stamps"),
        (dict(sources=named(np.full((2, 8, 8), 1 / 64), 0.0)), "pixel scale"),
        (dict(sources=named(np.ones((2, 8, 8)), 0.1)), "sum to one"),
    ],
)
def test_wrong_use_is_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        simulate(SMALL, **{"count": 4, "seed": 0, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_multiple_angle_is_the_angle_times_a_whole_number(times):
    angle = np.linspace(-np.pi, np.pi, 101).astype(np.float32)
    cosine, sine = render.multiple_angle(np.cos(angle), np.sin(angle), jnp.asarray(float(times)))
    np.testing.assert_allclose(cosine, np.cos(times * angle), atol=2e-6)
    np.testing.assert_allclose(sine, np.sin(times * angle), atol=2e-6)
