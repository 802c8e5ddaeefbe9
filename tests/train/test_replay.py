"""Learning from grades: shares of a batch, weights, one grid for both, and an honest verdict."""

import dataclasses
import functools
import math
from contextlib import closing
from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from lensjax.api import load_ensemble
from lensjax.cutouts import Cutouts
from lensjax.data.catalog import open_source
from lensjax.data.on_device import seen
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from lensjax.errors import UsageError
from lensjax.train.config import Hyperparameters
from lensjax.train.data import Labelled, prefetched, read_labelled
from lensjax.train.losses import binary_loss
from lensjax.train.member_step import ResolutionGroup, TrainBatch, example_losses, group_gradient
from lensjax.train.replay import Replayed, replayed
from lensjax.train.setup import example_weights
from lensjax.train.verdict import (
    BETTER,
    OPEN,
    UNKNOWN,
    WORSE,
    logits_before,
    sentence,
    speaks_for,
    verdict,
)
from tests.ensemble.members import random_member
from tests.train.small import MESH, config_and_state, transformer

SEEN = Preprocessing(("g", "r"), 16, 0.2, "asinh", 2.0, (0.1, 0.2), (1.0, 2.0))


def labelled(count: int, side: int, pixel_scale: float) -> Labelled:
    rng = np.random.default_rng(side)
    images = rng.normal(5.0, 2.0, (count, side, side, 2)).astype(np.float32)
    images[..., side // 2, side // 2, :] += 50.0
    table = {"label": np.arange(count) % 2, "id": [f"{side}-{row}" for row in range(count)]}
    cutouts = Cutouts(images, ("g", "r"), pixel_scale, table)
    return read_labelled(cutouts.source(), SEEN, "auto")


@pytest.fixture(scope="module")
def mixed() -> tuple[Replayed, Replayed]:
    """Cutouts larger than the members' grid, mixed with smaller ones."""
    return replayed(labelled(50, 24, 0.17), labelled(90, 12, 0.3), 0.8, 0.3, SEEN)


@pytest.mark.parametrize(("share", "batch"), [(0.8, 32), (0.5, 7), (0.7, 10), (0.99, 16)])
def test_the_share_of_the_replayed_sky_is_exact(mixed, share, batch):
    training = dataclasses.replace(mixed[0], share=Fraction(str(share)))
    graded, steps = training.graded, 40
    rows = training.rows(np.arange(steps * batch))
    is_replay = rows >= graded
    assert is_replay.sum() == math.floor(Fraction(str(share)) * steps * batch)
    for of_batch in is_replay.reshape(steps, batch):
        assert abs(of_batch.sum() - share * batch) < 1
    # Each part comes whole before any of it returns, and then in another order.
    for part, count in ((rows[~is_replay], graded), (rows[is_replay], len(training) - graded)):
        epochs = [part[at : at + count] for at in range(0, len(part) - count + 1, count)]
        assert all(len(np.unique(each)) == count for each in epochs)
        assert len({tuple(each.tolist()) for each in epochs}) == len(epochs)
    epoch = training.rows(np.arange(training.epoch_length))
    assert np.array_equal(np.unique(epoch[epoch < graded]), np.arange(graded))
    assert (epoch < graded).sum() == graded


def test_batches_hold_what_their_rows_say_and_can_be_resumed(mixed):
    training, _ = mixed
    weights = np.arange(float(len(training)))[None]
    with closing(prefetched(training.batches(8), weights, MESH)) as iterator:
        next(iterator)
        state = iterator.get_state()
        rows, arrays = next(iterator)
    np.testing.assert_array_equal(rows, training.rows(np.arange(8, 16)))
    np.testing.assert_array_equal(arrays["weight"][0], rows)
    np.testing.assert_array_equal(arrays["images"], training.arrays["images"][rows])
    np.testing.assert_array_equal(arrays["label"], training.labels[rows])
    with closing(prefetched(training.batches(8), weights, MESH)) as iterator:
        iterator.set_state(state)
        np.testing.assert_array_equal(next(iterator)[0], rows)


def test_on_their_common_grid_cutouts_look_as_they_did(mixed):
    """As the members see them where they are scored, each from its own pixels."""
    _, part = mixed
    show = jax.jit(seen, static_argnums=0)
    shown = show(part.transform, part.arrays["images"][:], part.arrays["brightness"])
    for source in (labelled(50, 24, 0.17), labelled(90, 12, 0.3)):
        transform = dataclasses.replace(source.transform, preprocessing=SEEN)
        own = source.take(np.flatnonzero(np.isin(source.id, part.id)))
        expected = show(transform, np.asarray(own.arrays["images"]), own.arrays["brightness"])
        places = [part.id.tolist().index(name) for name in own.id]
        np.testing.assert_allclose(np.asarray(shown)[places], expected, atol=2e-4)


def test_no_group_stands_on_both_sides(mixed):
    training, validation = mixed
    assert not {*training.group} & {*validation.group}
    assert training.graded + validation.graded == 50
    assert len(training) + len(validation) == 140


def test_grades_without_a_class_will_do_but_not_a_sky():
    graded, sky = labelled(50, 16, 0.2), labelled(90, 16, 0.2)
    others = graded.take(graded.labels == 0)
    training, _ = replayed(others, sky, 0.8, 0.3, SEEN)
    assert training.labels[: training.graded].sum() == 0
    with pytest.raises(UsageError, match="replayed data .* need lenses and non-lenses"):
        replayed(graded, sky.take(sky.labels == 0), 0.8, 0.3, SEEN)
    with pytest.raises(UsageError, match="none of the 1 graded cutouts are for"):
        replayed(graded.take(np.arange(1)), sky, 0.8, 0.3, SEEN)


def weighed(path, weight, rows=slice(None)) -> Labelled:
    images = np.random.default_rng(0).normal(size=(6, 12, 12, 1)).astype(np.float32)
    arrays = {"images": images, "label": np.arange(6) % 2, "id": np.arange(6), "weight": weight}
    np.savez(path, bands=np.array(["g"]), **{name: each[rows] for name, each in arrays.items()})
    like = Preprocessing.unnormalised(("g",), 12, None, "asinh", 2.0)
    return read_labelled(open_source(path, needed=None), like, "auto")


def test_what_does_not_count_is_as_if_it_were_not_there(tmp_path):
    weight = np.array([1.0, 0.0, 0.25, np.nan, 0.0, 0.5])
    found = weighed(tmp_path / "all.npz", weight)
    without = weighed(tmp_path / "some.npz", weight, [0, 2, 3, 5])
    assert found.id.tolist() == without.id.tolist() == [0, 2, 3, 5]
    np.testing.assert_array_equal(found.weights, np.float32([1, 0.25, 1, 0.5]))
    for name, values in found.arrays.items():
        np.testing.assert_array_equal(values[:], without.arrays[name][:])
    for wrong in (weight + 1, weight - 1):
        with pytest.raises(UsageError, match="column weight .* from 0 to 1"):
            weighed(tmp_path / "wrong.npz", wrong)
    assert (found.take(np.array([1, 3])).weights == np.float32([0.25, 0.5])).all()


def test_weights_of_members_are_those_of_the_cutouts():
    weight, labels = np.float32([1, 0.5, 0.25]), np.float32([1, 0, 0])
    found = example_weights((0, 1), labels, Hyperparameters(), weight)
    np.testing.assert_array_equal(found, [weight, weight])
    (found,) = example_weights((0,), labels, Hyperparameters(balanced=True), weight)
    assert found[labels == 1].sum() == pytest.approx(found[labels == 0].sum())


def test_losses_and_gradients_are_weighed():
    config, state = config_and_state(transformer)
    member = jax.tree.map(lambda leaf: leaf[0], state)
    rng = np.random.default_rng(3)
    images = rng.normal(size=(4, 48, 48, 2)).astype(np.float32)
    label, weight = np.float32([1, 0, 0, 1]), np.float32([1, 0.3, 0, 0])
    brightness = np.zeros((4, 2, 4), np.float32)
    logits = rng.normal(size=(4, 3))
    config = dataclasses.replace(
        config, consistency_weight=0.0, loss=functools.partial(binary_loss, smoothing=0.0)
    )
    found = example_losses(config, np.float32(logits), TrainBatch(None, None, label, weight))
    for scale, row in np.ndindex(3, 4):
        p = expit(logits[row, scale])
        expected = -weight[row] * np.log(p if label[row] else 1 - p)
        assert found[scale, row] == pytest.approx(expected, rel=1e-5, abs=1e-7)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(count, images, brightness, label, weight):
        batch = TrainBatch(images, brightness, label, weight)
        total = group_gradient(config, ResolutionGroup((0,)), 1, member, batch, None)[0]
        return jax.tree.map(lambda leaf: count * leaf, total)  # the sum, not the mean

    whole = gradient(4, images, brightness, label, weight)
    # What has no weight is left out here.
    one_by_one = [
        gradient(1, images[[r]], brightness[[r]], label[[r]], weight[[r]]) for r in range(2)
    ]
    summed = jax.tree.map(np.add, *one_by_one)
    for one, other in zip(*map(jax.tree.leaves, (whole, summed)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


LENS = np.arange(120) % 2


def drawn_logits(strength: float, seed: int = 0) -> np.ndarray:
    """Of lenses and others apart by so many sigmas, by the same noise."""
    return strength * (LENS - 0.5) + np.random.default_rng(seed).normal(size=120)


def test_only_what_grades_show_is_called_better():
    groups = np.arange(120) // 2
    worst, best = drawn_logits(0.5), drawn_logits(3.0)
    found = verdict(worst, best, LENS, groups)
    assert found["word"] == BETTER and found["difference"]["auroc"]["low"] > 0
    assert found["before"]["auroc"] < found["after"]["auroc"] and speaks_for(found)
    assert "60 of them lenses" in sentence(found) and sentence(found).endswith(": better")
    backwards = verdict(best, worst, LENS, groups)
    assert backwards["word"] == WORSE and not speaks_for(backwards)
    same = verdict(best, best, LENS, groups)
    assert same["word"] == OPEN and not speaks_for(same)
    few = verdict(worst[:12], best[:12], LENS[:12], groups[:12])
    assert few["word"] == UNKNOWN and few["why"] and not speaks_for(few)
    alike = verdict(worst[::2], best[::2], LENS[::2], groups[::2])
    assert alike["word"] == UNKNOWN and alike["lenses"] == 0 and not speaks_for(alike)


def test_a_verdict_is_about_what_was_learned_and_not_about_calibration():
    groups, logits = np.arange(120), drawn_logits(1.5)
    found = verdict(logits, 3 * logits + 4, LENS, groups)
    assert found["word"] == OPEN
    assert found["difference"]["log_loss"]["value"] == pytest.approx(0, abs=1e-6)
    # The best line through the log-odds is scikit-learn's; Platt's targets cost a little.
    fitted = LogisticRegression(C=np.inf).fit(logits[:, None], LENS)
    told = log_loss(LENS, fitted.predict_proba(logits[:, None])[:, 1])
    assert found["after"]["log_loss"] == pytest.approx(told, rel=0.02)


def test_logits_that_rank_backwards_are_told_from_those_that_do_not():
    backwards = -drawn_logits(1.0)
    found = verdict(backwards, drawn_logits(1.0), LENS, np.arange(120))
    assert found["before"]["auroc"] == pytest.approx(roc_auc_score(LENS, backwards))
    assert found["before"]["auroc"] < 0.5 < found["after"]["auroc"] and found["word"] == BETTER
    # Nothing was learned: no rounding makes it better.
    same = verdict(backwards, 1.001 * backwards + 1e-3, LENS, np.arange(120))
    assert same["word"] == OPEN and not speaks_for(same)


@pytest.mark.parametrize(("seed", "ahead"), [(6, True), (2, False)])
def test_what_is_ahead_within_its_interval_speaks_for_itself(seed, ahead):
    found = verdict(drawn_logits(2.0), drawn_logits(2.0, seed), LENS, np.arange(120))
    assert found["word"] == OPEN and speaks_for(found) is ahead
    assert (found["difference"]["auroc"]["value"] > 0) is ahead


def test_the_member_before_is_the_one_that_scores(tmp_path):
    member = random_member("vit_s16", 0, dataclasses.replace(SEEN, input_size=32, pixel_scale=0.1))
    folder = tmp_path / "vit_s16" / "0"
    checkpoint.save_member(folder, member)
    rng = np.random.default_rng(1)
    images = rng.normal(5.0, 2.0, (9, 24, 24, 2)).astype(np.float32)
    cutouts = Cutouts(images, ("g", "r"), 0.13, {"label": np.arange(9) % 2, "id": np.arange(9)})
    other = member.info.preprocessing.normalised((0.0, 0.0), (1.0, 1.0))
    graded = read_labelled(cutouts.source(), other, "auto")
    known = Cutouts(np.tile(images, (5, 1, 1, 1)), ("g", "r"), 0.13, {"label": np.arange(45) % 2})
    sky = read_labelled(known.source(), other, "auto")
    _, held = replayed(graded, sky, 0.8, 0.5, other)
    ours = held.take(np.arange(held.graded))
    found = logits_before(folder, ours)
    scores, _ = load_ensemble(tmp_path, mc_samples=1).score(cutouts)
    expected = {str(row["id"]): row["logit"] for row in scores}
    np.testing.assert_allclose(found, [expected[name] for name in ours.id], atol=2e-4)
