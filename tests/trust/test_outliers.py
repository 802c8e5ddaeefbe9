"""Outlier scores against distances computed by hand."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import mahalanobis

from lensjax.data.pixel_statistics import STATISTICS
from lensjax.errors import UsageError
from lensjax.trust import outliers
from lensjax.trust.outliers import outlier_scores
from lensjax.trust.run import Said


def features(rng, count, shift=0.0):
    """Correlated features, on scales that differ by a factor of a hundred."""
    mix = np.random.default_rng(9).normal(size=(8, 8))
    return (shift + rng.normal(size=(count, 8)) @ mix) * np.geomspace(0.1, 10, 8)


def ledoit_wolf(values):
    """The shrunk covariance (Ledoit & Wolf 2004, section 3.3), in float64."""
    count, size = values.shape
    values = values - values.mean(0)
    sample = values.T @ values / count
    level = np.trace(sample) / size
    spread = ((sample - level * np.eye(size)) ** 2).sum()
    noise = sum(((np.outer(row, row) - sample) ** 2).sum() for row in values) / count**2
    share = min(noise / spread, 1)
    return (1 - share) * sample + share * level * np.eye(size)


def test_distances_are_those_of_mahalanobis_from_one_half():
    rng = np.random.default_rng(0)
    reference, others = features(rng, 60), features(rng, 7, 0.5)
    found = outlier_scores(reference.astype(np.float32), others.astype(np.float32), seed=3)
    reference, others = (values.astype(np.float32).astype(float) for values in (reference, others))
    half = reference[np.random.default_rng(3).permutation(60)[:30]]
    scale = half.std(0)
    precision = np.linalg.inv(ledoit_wolf(half / scale))
    centre = (half / scale).mean(0)
    by_hand = [mahalanobis(row / scale, centre, precision) for row in others]
    np.testing.assert_allclose(found.distance, by_hand, rtol=1e-6)


def test_p_values_are_uniform_for_the_like_and_small_for_others():
    rng = np.random.default_rng(1)
    reference = features(rng, 4000)
    like = outlier_scores(reference, features(rng, 2000)).p_value
    assert stats.kstest(like, "uniform").pvalue > 1e-3
    other = outlier_scores(reference, features(rng, 200, 4.0)).p_value
    assert np.median(other) < 0.01 and other.min() >= 1 / 2001


def test_more_features_than_cutouts_and_constant_ones_do_no_harm():
    rng = np.random.default_rng(2)
    wide = np.hstack([rng.normal(size=(300, 200)), np.ones((300, 3))])
    p_value = outlier_scores(wide[:200], wide[200:]).p_value
    assert np.isfinite(p_value).all() and np.mean(p_value < 0.1) < 0.25


def test_cutouts_without_features_have_no_score_and_few_are_refused():
    reference = features(np.random.default_rng(0), 50)
    reference[0, 0] = np.nan
    found = outlier_scores(reference, np.vstack([reference[:2], np.full((1, 8), np.nan)]))
    assert np.isnan(found.distance).tolist() == np.isnan(found.p_value).tolist()
    assert np.isnan(found.p_value).tolist() == [True, False, True]
    with pytest.raises(UsageError, match="19 reference cutouts"):
        outlier_scores(reference[:20], reference)


def pixels(rng, count, picture=0.0, **changed):
    """Statistics of pixels, log-normal; those that are named are multiplied."""
    factors = [changed.get(name, 1.0) for name in STATISTICS]
    found = np.exp(rng.normal(size=(count, len(STATISTICS)))) * factors
    found[:, list(STATISTICS).index("picture")] = picture
    return found


def test_cutouts_unlike_the_calibration_are_counted_and_the_unreadable_masked():
    rng = np.random.default_rng(0)
    reference, run = pixels(rng, 2000), pixels(rng, 300)
    run[:40, 1:] *= 1e3
    run[-1] = np.nan
    said = outliers.said(run, reference)
    p_value = said.columns["outlier_p_value"]
    assert (p_value[:40] <= 1 / 1001 + 1e-6).all() and p_value.mask.tolist() == [False] * 299 + [
        True
    ]
    assert 40 <= said.record["outliers"]["unlike"] <= 50 and "unlike" in said.notes[0]
    assert said.record["outliers"]["reference"] == "validation data" and said.warnings == []


def test_of_a_run_without_a_cutout_that_can_be_read_nothing_is_said():
    like = np.random.default_rng(0).uniform(1, 2, (300, len(STATISTICS)))
    assert outliers.said(np.full((4, len(STATISTICS)), np.nan), like) == Said({}, {}, [])


def test_without_a_reference_a_run_ranks_itself_and_says_so():
    rng = np.random.default_rng(1)
    run = pixels(rng, 400)
    run[7, 1:] *= 1e3
    said = outliers.said(run, None)
    assert np.argmax(said.columns["outlier_distance"]) == 7
    assert "of this run" in said.notes[0] and "--calibrated-on" in said.notes[0]
    assert "unlike" not in said.record["outliers"] and said.warnings == []
    assert outliers.said(run[:19], None).columns == {}


def test_a_run_of_other_pixels_is_warned_of_and_what_differs_named():
    rng = np.random.default_rng(2)
    reference = pixels(rng, 3000)
    assert outliers.unlike_pixels(pixels(rng, 5000), reference) == []
    other = pixels(rng, 500, roughness=30.0)
    (warning,) = outliers.unlike_pixels(other, reference)
    assert STATISTICS["roughness"] in warning and STATISTICS["signal"] not in warning
    # A fifth that are artefacts are no other survey.
    few = pixels(rng, 500)
    few[:100, 1:] *= 1e3
    assert outliers.unlike_pixels(few, reference) == [] == outliers.unlike_pixels(few, None)


def test_pictures_are_compared_with_pictures_where_the_members_know_any():
    rng = np.random.default_rng(3)
    fluxes, pictures = pixels(rng, 2000), pixels(rng, 2000, picture=1.0, equal=1e4)
    run = np.vstack([pixels(rng, 600), pixels(rng, 400, picture=1.0, equal=1e4)])
    said = outliers.said(run, np.vstack([fluxes, pictures]))
    p_value = np.asarray(said.columns["outlier_p_value"])
    for rows in (slice(600), slice(600, None)):
        assert stats.kstest(p_value[rows], "uniform").pvalue > 1e-3
    assert said.warnings == []
    # A flux with pixels like those of pictures is none the less odd.
    run[:50] = pixels(rng, 50, equal=1e4)
    p_value = outliers.said(run, np.vstack([fluxes, pictures])).columns["outlier_p_value"]
    assert (p_value[:50] <= outliers.UNLIKE).mean() > 0.9
    record = outliers.said(run[600:], np.vstack([fluxes, pictures])).record["outliers"]
    assert record["reference_cutouts"] == 2000 and record["reference_pixels"]["picture"] == 1
    said = outliers.said(run[600:], fluxes)
    assert said.record["outliers"]["unlike"] > 360
    (warning,) = said.warnings
    assert STATISTICS["picture"] in warning and STATISTICS["equal"] in warning
