"""Members that are computed at different times: the scores are those of one step for all, and of
what a cascade drops those of its first member."""

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from astropy.table import Table

from lensjax import inference, outcome, pages
from lensjax.ensemble import checkpoint
from lensjax.errors import UsageError
from tests import networks
from tests.cli.conftest import CUTOUTS, PREPROCESSING, compiling
from tests.ensemble.members import random_member

CHEAP, OTHER = "vit_s16", "vit_b16"
LOSS = {"cascade_loss": 0.1}  # the promise takes 29 lenses
ALONE = f"scored by {CHEAP} alone"


@pytest.fixture(scope="module")
def undrawn_pictures():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pages, "draw", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def small_networks(undrawn_pictures):
    with networks.small():
        yield


def save(folder, member, logit, label, **validation):
    objects = {"id": np.arange(label.size), "label": label, "logit": logit} | validation
    member = dataclasses.replace(member, validation=objects)
    checkpoint.save_member(folder / member.info.architecture / "0", member)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, stack_file, undrawn_pictures):
    """A folder of two members of which the cheap one's lenses begin where half of the cutouts of
    the stack lie below."""
    folder, label = tmp_path_factory.mktemp("pair"), (np.arange(200) % 2).astype(np.float32)
    rng = np.random.default_rng(0)
    with networks.small():
        made = [random_member(each, n, PREPROCESSING) for n, each in enumerate((CHEAP, OTHER))]
        save(folder, made[0], 4 * label - 2, label)
        inference.infer(config(folder, stack_file, folder / "r", ensemble=CHEAP))
        lowest = np.median(read(folder / "r")[f"{CHEAP}_logits"])
        for member, first in zip(made, (lowest, 0.0), strict=True):
            logit = np.where(label == 1, first + rng.random(200), first - 4 - rng.random(200))
            save(folder, member, logit, label)
    return folder


def config(folder, data, output, **options) -> inference.InferenceConfig:
    given = {"checkpoints": folder, "data": str(data), "output": output, "batch_size": 4}
    return inference.InferenceConfig(**(given | {"mc_samples": 2} | options))


def read(folder) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions.npz") as file:
        return dict(file)


def assert_close(found, wanted, rows=slice(None), names=None) -> None:
    for name in names or set(wanted) - {"members", "id"}:
        if wanted[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name][rows], wanted[name][rows], rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name][rows], wanted[name][rows])


class Cascaded(NamedTuple):
    folder: Path
    outcome: outcome.Outcome
    compiled: list[str]


@pytest.fixture(scope="module")
def cascaded(pair, stack_file, tmp_path_factory, undrawn_pictures):
    """A run of a cascade, and the programs that it compiled."""
    folder = tmp_path_factory.mktemp("cascaded")
    options = config(pair, stack_file, folder, cascade=CHEAP, **LOSS)
    with networks.small(), compiling() as compiled:
        return Cascaded(folder, inference.infer(options), compiled)


@pytest.fixture(scope="module")
def plain(pair, stack_file, tmp_path_factory, undrawn_pictures):
    """The folder of a run of all members at once."""
    folder = tmp_path_factory.mktemp("plain")
    with networks.small():
        inference.infer(config(pair, stack_file, folder))
    return folder


def test_what_passes_has_the_scores_of_all_and_the_others_those_of_one(
    cascaded, plain, pair, stack_file, tmp_path
):
    inference.infer(config(pair, stack_file, tmp_path / "one", ensemble=CHEAP))
    outcome = cascaded.outcome
    found, of_all, of_one = map(read, (cascaded.folder, plain, tmp_path / "one"))
    said, dropped = outcome.run["cascade"], found["flag"] == ALONE
    cheap = of_one[f"{CHEAP}_logits"]
    np.testing.assert_array_equal(dropped, cheap < said["cut"])
    assert 0 < dropped.sum() < CUTOUTS
    assert_close(found, of_all, ~dropped)
    names = ("ensemble_logits", "ensemble_probs", f"{CHEAP}_logits", f"{CHEAP}_probs")
    assert_close(found, of_one, dropped, names)
    assert np.isnan(found[f"{OTHER}_logits"][dropped]).all()
    assert not found["ensemble_preds"][dropped].any()
    assert (said["member"], said["passed"]) == (CHEAP, (~dropped).sum() / CUTOUTS)
    assert (said["lenses"], said["loss"], said["prevalence"]) == (100, 0.1, 0.5)
    assert 0 < said["cost"] < 0.5 and 1 < said["speed_up"] < 1 / said["cost"]
    assert outcome.run["scored"] == CUTOUTS
    assert f"{CHEAP} has seen all cutouts and passed on" in outcome.summary(tmp_path)
    ranked = Table.read(cascaded.folder / "candidates.csv")["flag"].filled("") == ALONE
    assert ranked.tolist() == sorted(ranked.tolist())


def test_the_catalogue_is_the_same_from_ranges_of_ray(
    cascaded, pair, stack_file, tmp_path, from_the_last
):
    options = config(pair, stack_file, tmp_path / "r", cascade="auto", engine="ray", **LOSS)
    run = inference.infer(options).run
    assert_close(read(tmp_path / "r"), read(cascaded.folder))
    assert run["cascade"] == cascaded.outcome.run["cascade"]


def test_the_first_member_of_a_cascade_needs_no_share_in_the_score(pair, stack_file, tmp_path):
    folder, rng = tmp_path / "members", np.random.default_rng(1)
    shutil.copytree(pair, folder)
    cheap = checkpoint.load_member(folder / CHEAP / "0")
    label = cheap.validation["label"]
    logit = cheap.validation["logit"] + rng.normal(0, 6, label.size)
    save(folder, cheap, logit, label)
    assert list(checkpoint.find_members(folder, None)) == [OTHER]
    outcome = inference.infer(config(folder, stack_file, tmp_path / "r", cascade="auto", **LOSS))
    assert outcome.run["cascade"]["member"] == CHEAP


def test_a_cascade_compiles_two_steps(cascaded):
    assert cascaded.compiled.count("jit(step)") == 2


def test_an_added_member_computes_itself_and_the_scores_are_those_of_all(
    plain, pair, stack_file, tmp_path
):
    pytest.importorskip("blake3")
    for name, options in {
        "before": {"reuse": tmp_path / "store", "ensemble": CHEAP},
        "added": {"reuse": tmp_path / "store"},
        "again": {"reuse": tmp_path / "store"},
        "removed": {"reuse": tmp_path / "store", "ensemble": OTHER, "fusion": "mean_prob"},
    }.items():
        run = inference.infer(config(pair, stack_file, tmp_path / name, **options)).run
        reused = {"before": (0, 0), "added": (0, CUTOUTS)}.get(name, (CUTOUTS, 0))
        assert (run["reused"], run["reused_in_part"]) == reused
    for name in ("added", "again"):
        assert_close(read(tmp_path / name), read(plain))
    alone = f"{OTHER}_logits"
    np.testing.assert_allclose(read(tmp_path / "removed")[alone], read(plain)[alone], rtol=1e-6)


def test_what_cannot_be_is_refused_in_one_line(pair, stack_file, tmp_path):
    for options, said in (
        ({"cascade": CHEAP}, "100 lenses are too few.*: it takes 299"),
        ({"cascade": CHEAP, "ensemble": CHEAP}, "at least two members: the ensemble has one"),
        ({"cascade": "resnet18"}, "there is none; name auto or one of vit_b16, vit_s16"),
        ({"cascade": CHEAP, "reuse": tmp_path}, "--cascade and --reuse exclude each other"),
        ({"cascade": CHEAP, "batch_parallel": False}, "drop --no-batch-parallel"),
        ({"cascade": CHEAP, "cascade_loss": 1.0}, "--cascade-loss is a share between 0 and 1"),
    ):
        with pytest.raises(UsageError, match=said) as refused:
            inference.infer(config(pair, stack_file, tmp_path / "r", **options))
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "r").exists()


def test_members_without_common_validation_data_make_no_cascade(pair, stack_file, tmp_path):
    label = (np.arange(200) % 2).astype(np.float32)
    for number, architecture in enumerate((CHEAP, OTHER)):
        member = random_member(architecture, number, PREPROCESSING)
        save(tmp_path / "m", member, 4 * label - 2, label, id=np.arange(200) + number)
    with pytest.raises(UsageError, match="needs members that share validation data"):
        inference.infer(config(tmp_path / "m", stack_file, tmp_path / "r", cascade=CHEAP, **LOSS))
