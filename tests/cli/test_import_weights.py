"""scripts/import_weights.py: another program's member scores as it did there."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file
from scipy import special
from sklearn.metrics import roc_auc_score

import lensjax
from lensjax.cli import import_weights, infer
from lensjax.cutouts import Cutouts
from lensjax.data.pixel_statistics import STATISTICS
from lensjax.ensemble import calibration, checkpoint
from tests import networks, pixels
from tests.models.drawn_weights import images, state_dict


@pytest.fixture(autouse=True, scope="module")
def small_networks() -> None:
    """The real ones: weights and peers are theirs."""


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lens_finder.safetensors"
    save_file(state_dict(reference, "resnet18"), path)
    return path


def test_an_imported_member_scores_prepared_images_as_torchvision_does(
    run, weights, reference, tmp_path
):
    options = ("--arch", "resnet18", "--weights", weights, "--output", tmp_path / "m")
    ended = run(import_weights.main, *options, "--input-size", 64)
    assert ended.status == 0 and "lens_finder" in ended.out
    np.savez(tmp_path / "images.npz", images=images("resnet18", 64))
    ended = run(
        infer.main,
        *("--ensemble", "resnet18", "--checkpoints", tmp_path / "m", "--mc-samples", 1),
        *("--data", tmp_path / "images.npz", "--output", tmp_path / "r", "--batch-size", 2),
    )
    assert ended.status == 0, ended.error
    logits = np.load(tmp_path / "r" / "predictions.npz")["resnet18_logits"]
    expected = np.load(f"{reference}/reference_outputs.npz")["resnet18_64_logit"][:, 0]
    np.testing.assert_allclose(logits, expected, rtol=1e-4)


def test_weights_in_the_cache_of_the_hub_are_imported_without_a_network(
    run, weights, tmp_path, monkeypatch
):
    commit, repository = "0123456789" * 4, tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    for name, content in {
        f"blobs/{'e' * 64}": weights.read_bytes(),
        "refs/main": commit.encode(),
        f"snapshots/{commit}/config.json": b"{}",
    }.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(content)
    cached = repository / "snapshots" / commit / "model.safetensors"
    cached.symlink_to(f"../../blobs/{'e' * 64}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command = (import_weights.main, "--input-size", 64, "--output", tmp_path, "--weights")
    ended = run(*command, "hf://timm/resnet18.a1_in1k")
    assert ended.status == 0, ended.error
    record = json.loads((tmp_path / "resnet18/resnet18.a1_in1k/member.json").read_text())
    assert record["training"]["imported_from"] == {
        **{"repository": "timm/resnet18.a1_in1k", "revision": commit},
        "file": "model.safetensors",
    }
    ended = run(*command, "hf://timm/resnet18.a2_in1k")
    assert ended.status == 2 and ended.error.count("\n") == 1
    assert "HF_HUB_OFFLINE is set" in ended.error
    monkeypatch.delitem(sys.modules, "lensjax.models.hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    ended = run(*command, "hf://timm/resnet18.a1_in1k")
    assert ended.status == 2 and "needs huggingface_hub: pip install 'lensjax[hub]'" in ended.error


def test_bands_and_normalisation_are_recorded(run, weights, tmp_path):
    ended = run(
        import_weights.main,
        *("--arch", "ResNet18", "--weights", weights, "--output", tmp_path, "--name", "four"),
        *("--bands", "g,r,i,z", "--input-size", 64, "--stretch", "asinh", "--pixel-scale", 0.2),
        *("--mean", "1,2,3,4", "--std", "1,1,2,2"),
    )
    assert ended.status == 0 and "4" in ended.out
    record = json.loads((tmp_path / "resnet18" / "four" / "member.json").read_text())
    assert record["preprocessing"]["bands"] == ["g", "r", "i", "z"]
    assert record["preprocessing"]["mean"] == [1, 2, 3, 4]
    assert record["preprocessing"]["stretch"] == "asinh"


def test_a_member_is_made_compact_and_stays_what_it_is(run, members, tmp_path):
    whole, compact = members / "vit_s16" / "0", tmp_path / "c" / "vit_s16" / "0"
    (tmp_path / "notes.md").write_text("Seen *working*.")
    command = ("--weights", whole, "--store", "int8", "--output", tmp_path / "c")
    cases = {
        "--bands does not go with a member": ("--bands", "g"),
        f"--notes {tmp_path} cannot be read": ("--notes", tmp_path),
        "": ("--notes", tmp_path / "notes.md"),
        "0 exists; give another": (),
    }
    with networks.small():
        for words, more in cases.items():
            ended = run(import_weights.main, *command, *more)
            assert words in ended.error and ended.error.count("\n") == bool(words), ended
        # What is not given anew is kept.
        again = ("--weights", compact, "--output", tmp_path / "again")
        assert run(import_weights.main, *again).status == 0
        states = [checkpoint.load_member(folder).state for folder in (whole, compact)]
    for name, leaf in states[0].items():
        assert np.abs(states[1][name] - leaf).max() <= np.abs(leaf).max() / 250, name
    folders = (whole, compact, tmp_path / "again" / "vit_s16" / "0")
    infos = [dataclasses.asdict(checkpoint.read_info(folder)) for folder in folders]
    changed = {key for key in infos[0] if infos[0][key] != infos[1][key]}
    assert changed == {"weights_sha256", "store", "notes"}
    for info, folder in zip(infos[1:], folders[1:], strict=True):
        assert (
            info["notes"] == "Seen *working*."
            and info["notes"] in (folder / "README.md").read_text()
        )


def test_a_member_may_see_a_wider_field(run, members, images, tmp_path):
    """It scores as it would cutouts of half the pixel scale."""
    before, folder = members / "vit_s16" / "0", tmp_path / "wide" / "vit_s16" / "0"
    command = ("--weights", before, "--output", tmp_path / "wide", "--pixel-scale")
    with networks.small():
        assert "must be above 0" in run(import_weights.main, *command, 0).error
        scale = checkpoint.read_info(before).preprocessing.pixel_scale
        ended = run(import_weights.main, *command, 2 * scale)
        assert ended.status == 0 and "arcsec; what was measured at its old scale" in ended.out
        wide, old = (checkpoint.load_member(each) for each in (folder, before))
        assert wide.info.preprocessing.pixel_scale == 2 * scale
        assert wide.validation is None and wide.info.calibration == old.info.calibration
        at = {members: 0.2, tmp_path / "wide": 0.4}
        found = [
            lensjax.load_ensemble(checkpoints, "vit_s16:1", mc_samples=1)
            .score(Cutouts(images, ("g", "r", "i"), pixel_scale))
            .candidates["vit_s16_probability"]
            for checkpoints, pixel_scale in at.items()
        ]
    np.testing.assert_array_equal(*found)


def test_a_member_is_calibrated_and_measured_on_other_cutouts(run, members, images, tmp_path):
    """By its own logits there, whose pixels it then knows."""
    label = np.arange(len(images)) % 2
    data = Cutouts(images, ("g", "r", "i"), 0.2, {"id": np.arange(len(images)), "label": label})
    data, before = data.save(tmp_path / "data.npz"), members / "vit_s16" / "0"
    command = ("--weights", before, "--output", tmp_path, "--calibrated-on")
    with networks.small():
        ended = run(import_weights.main, *command, data)
        assert ended.status == 0, ended
        assert "calibrated on 22 cutouts, 11 of them lenses" in ended.out
        found, old = (checkpoint.load_member(each) for each in (tmp_path / "vit_s16" / "0", before))
        scored = lensjax.load_ensemble(members, "vit_s16", mc_samples=1).score(data).candidates
    assert found.info.weights_sha256 == old.info.weights_sha256
    logit = dict(zip(found.validation["id"], found.validation["logit"], strict=True))
    raw = special.logit(scored["vit_s16.0_probability"]) - old.info.calibration["intercept"]
    raw /= old.info.calibration["slope"]
    np.testing.assert_allclose([logit[n] for n in scored["id"]], raw, atol=1e-3)
    in_order = [logit[n] for n in range(len(images))]
    assert found.info.metrics["auroc"]["value"] == pytest.approx(roc_auc_score(label, in_order))
    slope, intercept = calibration.platt(np.array(in_order), label)
    assert found.info.calibration["slope"] == pytest.approx(slope)
    assert found.info.calibration["intercept"] == pytest.approx(intercept)
    by_hand = [[pixels.statistics(image)[name] for name in STATISTICS] for image in images]
    np.testing.assert_allclose(found.pixels, by_hand, rtol=1e-5, atol=1e-6)


def test_wrong_use_is_one_clear_line(run, weights, tmp_path):
    (tmp_path / "resnet18" / "there").mkdir(parents=True)
    (tmp_path / "resnet18" / ".aside.old").mkdir()
    (tmp_path / "text.pth").write_text("not weights")
    cases = {
        "--weights is missing": (2, ()),
        "vit_b16": (2, ("--weights", weights, "--arch", "vit_b17")),
        "plain name": (2, ("--weights", weights, "--name", "../up")),
        "there exists": (2, ("--weights", weights, "--name", "there")),
        "aside exists": (2, ("--weights", weights, "--name", "aside")),
        "3 numbers": (2, ("--weights", weights, "--std", "1,0,1")),
        "--dropout 1.0 must lie in 0..1": (2, ("--weights", weights, "--dropout", 1)),
        "--pixel-scale 0.0 must be": (2, ("--weights", weights, "--pixel-scale", 0)),
        "--bands g,,i has an empty": (2, ("--weights", weights, "--bands", "g,,i")),
        "must be numbers": (2, ("--weights", weights, "--mean", "a,b,c")),
        "text.pth": (None, ("--weights", tmp_path / "text.pth")),
        f"{weights} does not hold weights of resnet34; they fit --arch resnet18": (
            *(2, ("--weights", weights, "--arch", "resnet34")),
        ),
    }
    for words, (status, more) in cases.items():
        ended = run(import_weights.main, "--output", tmp_path, *more)
        assert ended.status == status or (status is None and ended.status in (1, 2)), ended
        assert ended.error.count("\n") == 1 and words in ended.error, ended
    assert {path.name for path in (tmp_path / "resnet18").iterdir()} == {"there", ".aside.old"}


def test_weights_of_no_architecture_say_what_is_wrong_in_one_short_line(run, tmp_path):
    save_file({"encoder.weight": np.ones((3, 3), np.float32)}, tmp_path / "other.safetensors")
    command = ("--weights", tmp_path / "other.safetensors", "--output", tmp_path)
    ended = run(import_weights.main, *command)
    assert ended.status == 1 and ended.error.count("\n") == 1 and len(ended.error) < 600
    assert ended.error.startswith(f"error: {tmp_path}/other.safetensors: the weights are not those")
    assert "missing: bn1.bias, bn1.running_mean" in ended.error and " more; " in ended.error
