"""The model card says what was measured, and what is not known."""

import dataclasses

import numpy as np
import pytest

from lensjax import metrics
from lensjax.ensemble.checkpoint import Member, save_member
from tests.ensemble.members import random_member

SLOPE, INTERCEPT = 2.0, -1.0


@pytest.fixture(scope="module")
def member() -> Member:
    """A member with the validation data and the record of a training."""
    rng = np.random.default_rng(0)
    label = (np.arange(400) % 4 == 0).astype(np.float32)
    logit = rng.normal(2 * label, 1.0)
    probability = 1 / (1 + np.exp(-(SLOPE * logit + INTERCEPT)))
    blank = random_member("vit_s16", 0)
    info = dataclasses.replace(
        blank.info,
        calibration={"slope": SLOPE, "intercept": INTERCEPT, "brier": 0.1},
        metrics=metrics.evaluate(probability, label).to_json(),
        training={"cutouts": 1000, "lenses": 400, "epochs": 2.5, "batch_size": 8, "seed": 3}
        | {"learning_rate": 0.01, "freeze": None, "simulated": {"size": 48}},
        versions={"jax": "0.10.2"},
    )
    validation = {"id": np.arange(400), "label": label, "logit": logit}
    return Member(info, blank.state, validation)


def card(folder, member, **more):
    save_member(folder / "member", member, **more)
    return (folder / "member" / "README.md").read_text()


def test_a_card_tells_of_training_input_and_metrics(member, tmp_path):
    text = card(tmp_path, member)
    auroc = member.info.metrics["auroc"]
    for words in (
        *("# vit_s16 for", "| bands | g, r |", "32 x 32 pixels", "a field of 6.4 arcsec"),
        *("1,000 simulated cutouts an epoch, 400 of them", "2,500 cutouts seen. Seed 3"),
        *("| learning_rate | 0.01 |", "| size | 48 |", "- jax 0.10.2"),
        *("100 lenses and 300 non-lenses", "2 x logit -1", "All weights are float32"),
        f"| AUROC | {auroc['value']:.4f} | {auroc['low']:.4f} to {auroc['high']:.4f} |",
        *("where 25 % of the cutouts are lenses", "simulated lenses only"),
    ):
        assert words in text
    assert "freeze" not in text and "int8" not in text and "\n\n\n" not in text


def test_the_shares_of_lenses_found_are_those_of_the_validation_scores(member, tmp_path):
    text = card(tmp_path, member)
    lens, logit = member.validation["label"] == 1, member.validation["logit"]
    for percent, others in ((1.0, 3), (5.0, 15), (10.0, 30)):
        # The rank of the score that so many of the 300 non-lenses exceed, counted by hand.
        threshold = np.sort(logit[~lens])[::-1][others]
        found = 100 * (logit[lens] > threshold).mean()
        probability = 1 / (1 + np.exp(-(SLOPE * threshold + INTERCEPT)))
        assert f"| {percent:.1f} % | {probability:.4f} | {found:.1f} % |" in text
    assert "| 0.1 % |" not in text  # less than one of 300
    counts = [
        int(line.split("|")[1])
        for line in text.splitlines()
        if line.count("|") == 4 and line.split("|")[1].strip().isdigit()
    ]
    assert sum(counts) == 400


def test_a_card_of_a_member_in_int8_says_so_and_has_the_notes(member, tmp_path):
    info = dataclasses.replace(member.info, notes="Found 9 of 10 <real> lenses.\n")
    text = card(tmp_path, dataclasses.replace(member, info=info), store="int8")
    assert "Kernels are int8" in text and "measured with float32 weights" in text
    assert "\n\nFound 9 of 10 <real> lenses.\n\n" in text


def test_a_card_of_imported_weights_says_that_nothing_was_measured(member, tmp_path):
    info = dataclasses.replace(
        member.info, metrics={}, training={"imported_from": {"repository": "a/b", "file": "c.pth"}}
    )
    text = card(tmp_path, Member(info, member.state))
    assert "from repository a/b, file c.pth.\n" in text and "how good it is is not known" in text
    assert "AUROC" not in text and "lenses found" not in text and "cutouts seen" not in text
