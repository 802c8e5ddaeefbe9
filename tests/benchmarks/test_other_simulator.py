"""What the benchmark of another simulator draws, and how it measures."""

import numpy as np
import pytest
from astropy.table import Table
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.slow  # lenstronomy is an extra
KINDS = "lens", "alone", "beside"


@pytest.fixture(scope="module")
def simulator():
    from benchmarks import other_simulator

    return other_simulator


def bands_of(simulator, kind, seed):
    mass, galaxy, source = simulator.system(np.random.default_rng(seed), kind)
    return mass, list(simulator.in_bands(mass, galaxy, source, lensed=kind == "lens"))


def test_half_are_lenses_and_they_alone_have_an_arc(simulator):
    found = simulator.drawn(8, seed=1)
    assert found.images.shape == (8, 72, 72, 3) and np.isfinite(found.images).all()
    assert found.columns["label"].tolist() == [1, 0] * 4
    for known in ("arc_snr", "einstein_radius"):
        np.testing.assert_array_equal(
            np.isfinite(found.columns[known]), found.columns["label"] == 1
        )
    low, high = simulator.SNR
    assert ((found.columns["arc_snr"][::2] > low) & (found.columns["arc_snr"][::2] < high)).all()
    np.testing.assert_array_equal(simulator.drawn(8, seed=1).images, found.images)


def test_images_of_a_lens_lie_about_its_einstein_ring(simulator):
    for seed in range(5):
        mass, bands = bands_of(simulator, "lens", seed)
        _, arc, _, _ = bands[2]
        y, x = np.indices(arc.shape) - (arc.shape[0] - 1) / 2
        far = np.hypot(x * 0.2 - mass[0]["center_x"], y * 0.2 - mass[0]["center_y"])
        assert np.average(far, weights=arc) == pytest.approx(mass[0]["theta_E"], rel=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_far_from_the_galaxy_is_that_of_the_sky(simulator, kind):
    rng, corners = np.random.default_rng(3), []
    for _ in range(6):
        image, *known = simulator.cutout(rng, kind)
        assert np.isfinite(known).all() == (kind == "lens")
        edge = np.concatenate([image[:6], image[-6:]])
        corners.append(np.diff(edge, axis=1) / 2**0.5)  # what the galaxy's wing is not
    _, bands = bands_of(simulator, kind, 0)
    sky = [noise[0, 0] for _, _, noise, _ in bands]
    found = np.median(np.abs(corners), axis=(0, 1, 2)) / 0.6745  # of a Gaussian
    np.testing.assert_allclose(found, sky, rtol=0.05)


def test_figures_are_those_of_scikit_learn(simulator):
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.uniform(0.4, 1.0, 500), rng.uniform(0.0, 0.6, 500)])
    scored = Table(
        {
            "id": np.arange(1000).astype(str),
            "probability": scores,
            "label": np.repeat([1, 0], 500),
            "kind": np.repeat(["lens", "beside", "alone"], [500, 250, 250]),
            "arc_snr": np.r_[np.full(250, 20.0), np.full(250, 40.0), np.full(500, np.nan)],
            "einstein_radius": np.r_[np.resize([0.8, 1.2], 500), np.full(500, np.nan)],
        }
    )
    told = {
        name: float(told["ensemble"].split()[0]) for name, told in simulator.figures(scored).items()
    }
    expected = roc_auc_score(np.repeat([1, 0], 500), scores)
    assert told["all lenses, against all others, AUROC"] == pytest.approx(expected, abs=6e-4)
    wide = scores[250:500][scored["einstein_radius"][250:500] >= 1.0]
    expected = roc_auc_score(np.repeat([1, 0], [125, 250]), np.r_[wide, scores[750:]])
    name = "S/N of 30 and more, Einstein radius of 1 arcsec and more, against galaxies alone, AUROC"
    assert told[name] == pytest.approx(expected, abs=6e-4)
    # Between 0.4 and 0.6 half are lenses; outside, scores are too modest by 0.2 on the average.
    assert told["calibration error"] == pytest.approx(0.2 * 2 / 3, abs=0.03)
