"""Members on disk come back bit by bit, and what does not fit is refused in one line."""

import dataclasses
import json
import os
import shutil
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from lensjax import members
from lensjax.ensemble import checkpoint
from lensjax.ensemble.checkpoint import Member, find_members, load_member, save_member
from lensjax.errors import LensjaxError, UsageError
from tests.ensemble.members import random_member


@pytest.fixture(scope="module")
def member() -> Member:
    validation = {
        "id": np.array(["a", "é,b"]),
        "label": np.array([0.0, 1.0]),
        "logit": np.array([-1.5, 2.5]),
    }
    return dataclasses.replace(random_member("vit_s16", 0), validation=validation)


@pytest.fixture(scope="module")
def saved(member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "vit_s16" / "first"
    save_member(folder, member)
    return folder


def test_a_member_comes_back_bit_by_bit(member, saved):
    again = load_member(saved)
    assert again.info == member.info
    assert again.state.keys() == member.state.keys()
    for name, leaf in member.state.items():
        np.testing.assert_array_equal(again.state[name], leaf)
    for name, values in member.validation.items():
        np.testing.assert_array_equal(again.validation[name], values)


def test_members_of_earlier_versions_which_were_compressed_still_load(member, saved, tmp_path):
    folder = tmp_path / "vit_s16" / "earlier"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "weights")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "weights", dict(member.state))
    again = load_member(folder)
    for name, leaf in member.state.items():
        np.testing.assert_array_equal(again.state[name], leaf)


@pytest.fixture(scope="module")
def compact(member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact") / "vit_s16" / "first"
    save_member(folder, member, "int8")
    return folder


def stored_arrays(folder):
    """Returns the arrays as Orbax itself reads them."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder / "weights")
    return {name: np.asarray(array) for name, array in arrays.items()}


def test_a_member_in_int8_is_read_as_float32_and_its_hash_is_of_what_is_stored(member, compact):
    again, stored = load_member(compact), stored_arrays(compact)
    assert again.info.store == "int8" and again.state.keys() == member.state.keys()
    assert again.info.weights_sha256 == checkpoint.arrays_sha256(stored)
    for name, leaf in member.state.items():
        wanted = leaf
        if name.endswith("kernel"):
            assert stored[name].dtype == np.int8
            wanted = stored[name] * stored[f"{name}.scales"].astype(np.float64)
        assert again.state[name].dtype == np.float32
        np.testing.assert_array_equal(again.state[name], wanted.astype(np.float32), err_msg=name)


def test_a_member_in_int8_stays_as_it_is_when_stored_again(compact, tmp_path):
    member = load_member(compact)
    save_member(tmp_path / "again", member, "int8")
    for name, leaf in load_member(tmp_path / "again").state.items():
        np.testing.assert_allclose(leaf, member.state[name], rtol=1e-6, err_msg=name)


def test_a_large_array_lies_in_several_files(member, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FILE_BYTES", limit := 2**14)
    state = member.state | {"embedding.positions": np.zeros((1024, 32), np.float32)}
    save_member(tmp_path, dataclasses.replace(member, state=state))
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(sizes) > 8 * limit and max(sizes) < 2 * limit
    np.testing.assert_array_equal(stored_arrays(tmp_path)["embedding.positions"], 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda scales: None, "kernel.scales is missing"),
        (lambda scales: scales.ravel()[:-1], "kernel.scales is float32"),
        (lambda scales: scales.astype(np.float64), "kernel.scales is float64"),
        (lambda scales: scales * np.float32(2), "sha256"),
        (lambda scales: scales * np.float32("nan"), "sha256"),
    ],
)
def test_damaged_scales_are_one_line(compact, tmp_path, change, said):
    folder = tmp_path / "member"
    shutil.copytree(compact, folder)
    arrays = stored_arrays(folder)
    name = "blocks.expand.kernel.scales"
    arrays[name] = change(arrays[name])
    shutil.rmtree(folder / "weights")
    with ocp.PyTreeCheckpointer() as checkpointer:
        kept = {name: array for name, array in arrays.items() if array is not None}
        checkpointer.save(folder / "weights", kept)
    with pytest.raises(LensjaxError, match=said) as caught:
        load_member(folder)
    assert "\n" not in str(caught.value)


def test_a_member_that_is_stored_otherwise_than_it_says_is_one_line(saved, compact, tmp_path):
    for folder, store in ((saved, "int8"), (compact, "float32")):
        other = changed(shutil.copytree(folder, tmp_path / store), "store", store)
        with pytest.raises(LensjaxError, match="does not fit its network: ") as caught:
            load_member(other)
        assert "\n" not in str(caught.value)


def test_saving_over_a_member_leaves_one_and_no_scraps(member, saved):
    save_member(saved, member)
    assert [path.name for path in saved.parent.iterdir()] == ["first"]


def edit(saved, tmp_path, **changes):
    """Returns a copy of the member with other values in its member.json."""
    folder = tmp_path / "vit_s16" / "edited"
    shutil.copytree(saved, folder)
    content = json.loads((folder / "member.json").read_text()) | changes
    (folder / "member.json").write_text(json.dumps(content))
    return folder


def without_weights(saved, tmp_path):
    """Returns a copy of what lies beside the weights of the member."""
    folder = tmp_path / "vit_s16" / "edited"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("weights"))
    return folder


def changed(folder, path: str, *value):
    """Returns the folder, a field of whose member.json has another value, or is no more."""
    *above, last = path.split(".")
    content = json.loads((folder / "member.json").read_text())
    inner = content[above[0]] if above else content
    inner.pop(last, None)
    inner.update(zip([last], value, strict=False))
    (folder / "member.json").write_text(json.dumps(content))
    return folder


def test_weights_of_another_architecture_are_refused_with_every_difference(saved, tmp_path):
    with pytest.raises(LensjaxError) as caught:
        load_member(edit(saved, tmp_path, architecture="resnet18"))
    message = str(caught.value)
    assert "\n" not in message
    assert "is missing" in message and "is unknown" in message and "wanted" in message
    assert "embedding.patches.kernel" in message and "head.linear.kernel" in message


def test_other_weights_than_named_are_refused(saved, tmp_path):
    with pytest.raises(LensjaxError, match="sha256"):
        load_member(edit(saved, tmp_path, weights_sha256="0" * 64))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"architecture": "vit_s16"}'])
def test_a_broken_record_is_one_line(saved, tmp_path, text):
    folder = without_weights(saved, tmp_path)
    (folder / "member.json").write_text(text)
    with pytest.raises(LensjaxError, match="vit_s16/edited/member.json") as caught:
        load_member(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["", "manifest.ocdbt", "d", "ocdbt.process_0", "ocdbt.process_0/d"]
)
def test_missing_weights_are_one_line_and_nothing_else_is_printed(
    saved, tmp_path, capfd, caplog, missing
):
    folder = tmp_path / "member"
    shutil.copytree(saved, folder, copy_function=os.link)
    path = folder / "weights" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LensjaxError, match="/weights cannot be read") as caught:
        load_member(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    time.sleep(0.1)  # for what other threads would print
    assert capfd.readouterr() == ("", "") and not caplog.records


def fake_members(folder, architecture, *names):
    for name in names:
        (folder / architecture / name).mkdir(parents=True)
        (folder / architecture / name / "member.json").write_text("{}")


def test_members_are_found_in_natural_order_and_named_by_number(tmp_path):
    fake_members(tmp_path, "resnet18", "10", "9", "2")
    fake_members(tmp_path, "vit_b16", "only")
    found = find_members(tmp_path, "resnet18,ViT_B_16")
    assert list(found) == ["resnet18.0", "resnet18.1", "resnet18.2", "vit_b16"]
    assert [path.name for path in found.values()] == ["2", "9", "10", "only"]
    assert list(find_members(tmp_path, "resnet18:1")) == ["resnet18"]


@pytest.mark.parametrize(
    ("ensemble", "line"),
    [
        ("resnet18,vit_b16", "holds no vit_b16 members"),
        ("resnet18:3", "holds 1 of 3 resnet18 members"),
        ("resnet18:0", "wants a positive number"),
        ("resnet18:x", "wants a positive number"),
        ("resnet18,resnet18", "twice"),
        ("resnet19", "resnet18"),
    ],
)
def test_what_cannot_be_found_is_one_line(tmp_path, ensemble, line):
    fake_members(tmp_path, "resnet18", "0")
    with pytest.raises(UsageError) as caught:
        find_members(tmp_path, ensemble)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_no_members_name_the_three_ways_on(tmp_path):
    with pytest.raises(UsageError) as caught:
        find_members(tmp_path / "none", "resnet18")
    for way in ("train.py", "import_weights.py", "--checkpoints a folder"):
        assert way in str(caught.value)


def test_all_members_of_a_folder_are_taken(tmp_path):
    fake_members(tmp_path, "vit_s16", "0")
    fake_members(tmp_path, "resnet18", "1", "0", ".0-half-written")
    fake_members(tmp_path, ".trash", "0")
    assert list(find_members(tmp_path, "all")) == ["resnet18.0", "resnet18.1", "vit_s16"]
    with pytest.raises(UsageError, match="holds no members .*--checkpoints a folder"):
        find_members(tmp_path / "none", None)


@pytest.fixture
def validated(member, tmp_path):
    """Saves members of a good architecture, its two seeds validated on the same 200 objects as a
    useless one, or on others."""

    def save(others=0):
        rng, label = np.random.default_rng(0), np.arange(200) % 2
        for architecture, name, strength in (
            *(("vit_s16", "0", 4.0), ("vit_s16", "1", 0.0)),
            ("light_transformer", "0", 0.0),
        ):
            first = others if architecture == "light_transformer" else 0
            logit = strength * (label - 0.5) + rng.normal(0, 0.5, 200)
            found = {"id": first + np.arange(200), "label": label, "logit": logit}
            info = dataclasses.replace(member.info, architecture=architecture)
            kept = dataclasses.replace(member, info=info, validation=found)
            save_member(tmp_path / architecture / name, kept)
        return tmp_path

    return save


def test_an_architecture_without_a_share_is_left_out_where_nobody_names_it(validated):
    folder = validated()
    assert list(find_members(folder, None)) == ["vit_s16.0", "vit_s16.1"]
    everyone = ["light_transformer", "vit_s16.0", "vit_s16.1"]
    assert list(find_members(folder, "all")) == everyone
    assert list(find_members(folder, "light_transformer")) == everyone[:1]
    found = members.find_members(folder, None)
    assert (tuple(found.folders), found.left_out) == (
        ("vit_s16.0", "vit_s16.1"),
        ("light_transformer",),
    )
    assert members.find_members(folder, "vit_s16:1").left_out == ()


def test_all_are_taken_of_members_that_share_no_validation_data(validated):
    assert len(find_members(validated(others=1000), None)) == 3


def test_the_hash_sees_names_shapes_and_values():
    state = {"a": np.zeros((2, 3), np.float32)}
    other_name = {"b": state["a"]}
    other_shape = {"a": np.zeros((3, 2), np.float32)}
    other_value = {"a": np.full((2, 3), 1e-30, np.float32)}
    hashes = map(checkpoint.arrays_sha256, (state, other_name, other_shape, other_value))
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("preprocessing.bands", ["r", "g"]),
        ("preprocessing.input_size", 48),
        ("preprocessing.pixel_scale", 0.3),
        ("preprocessing.stretch", "log"),
        ("preprocessing.softening", 3.0),
        ("preprocessing.mean", [0.0, 0.0]),
        ("preprocessing.std", [1.0, 1.0]),
        ("dropout", 0.5),
        ("block_dropout", 0.1),
        ("calibration", {"slope": 2.0, "intercept": 0.0, "brier": 0.25}),
        ("weights_sha256", "another"),
    ],
)
def test_whatever_changes_the_scores_is_another_identity(member, saved, tmp_path, path, value):
    other = checkpoint.read_info(changed(without_weights(saved, tmp_path), path, value))
    assert other.identity(member.validation) != member.info.identity(member.validation)


def test_the_validation_data_are_part_of_the_identity_and_what_only_describes_is_not(
    member, saved, tmp_path
):
    identity = member.info.identity(member.validation)
    for name, values in member.validation.items():
        assert member.info.identity(member.validation | {name: values[::-1]}) != identity
    assert member.info.identity(None) != identity
    folder = changed(without_weights(saved, tmp_path), "metrics", {"auroc": 1})
    changed(folder, "notes", "good")
    again = checkpoint.read_info(folder), checkpoint.read_validation(folder)
    assert again[0].identity(again[1]) == identity


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("dropout", 1.0, "Expected `float` < 1.0 - at `$.dropout`"),
        ("dropout", True, "got `bool` - at `$.dropout`"),
        ("block_dropout", float("nan"), "at `$.block_dropout`"),
        ("calibration.slope", float("nan"), "at `$.calibration.slope`"),
        ("calibration.slope", "1", "got `str` - at `$.calibration.slope`"),
        ("calibration.intercept", float("inf"), "at `$.calibration.intercept`"),
        ("calibration.intercept", 1e39, "at `$.calibration.intercept`"),
        ("calibration.brier", None, "at `$.calibration.brier`"),
        ("calibration", None, "at `$.calibration`"),
        ("architecture", "resnet81", "did you mean resnet18?"),
        ("preprocessing", [], "at `$.preprocessing`"),
        ("preprocessing.bands", "gr", "at `$.preprocessing.bands`"),
        ("preprocessing.bands", ["g"], "1 bands with 2 means"),
        ("preprocessing.input_size", "64", "got `str` - at `$.preprocessing.input_size`"),
        ("preprocessing.input_size", 64.5, "got `float` - at `$.preprocessing.input_size`"),
        ("preprocessing.pixel_scale", 0, "pixel scale, softening and standard deviations must be"),
        ("preprocessing.stretch", "sinh", "stretch 'sinh' is not known: asinh or "),
        ("preprocessing.mean", [0.1, float("nan")], "the means must be finite"),
        ("store", "int4", "at `$.store`"),
        ("colour", "red", "unknown field 'colour'"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_what_cannot_be_is_refused_with_the_file_and_the_field(saved, tmp_path, path, value, said):
    folder = changed(without_weights(saved, tmp_path), path, value)
    with pytest.raises(LensjaxError) as caught:
        checkpoint.read_info(folder)
    assert "vit_s16/edited/member.json cannot be read: " in str(caught.value)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["architecture", "calibration.brier", "preprocessing.std"])
def test_what_is_missing_is_named(saved, tmp_path, path):
    folder = changed(without_weights(saved, tmp_path), path)
    name = path.rpartition(".")[2]
    with pytest.raises(LensjaxError, match=f"edited/member.json .*missing required field `{name}`"):
        checkpoint.read_info(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": None}, "label"),
        ({"id": np.arange(3)}, "the same length"),
        ({"logit": np.zeros((2, 1))}, "the same length"),
        ({"label": np.array([0.0, 0.5])}, "label must be 0 for some objects and 1 for the others"),
        ({"label": np.array([1.0, np.nan])}, "label must be 0"),
        ({"label": np.array(["no", "yes"])}, "label must be 0"),
        ({"label": np.array([1.0, 1.0])}, "label must be 0"),
        ({"logit": np.array([1.0, np.nan])}, "logit must be finite numbers"),
        ({"logit": np.array(["a", "b"])}, "logit must be finite numbers"),
        ({"id": np.array([{}, ()], object)}, "cannot be read as an .npz with id, label and logit"),
    ],
    ids=str,
)
def test_validation_data_that_cannot_be_are_refused(member, saved, tmp_path, changes, said):
    folder = without_weights(saved, tmp_path)
    arrays = {k: v for k, v in (member.validation | changes).items() if v is not None}
    np.savez(folder / "validation.npz", **arrays)
    with pytest.raises(LensjaxError, match=f"edited/validation.npz.*{said}") as caught:
        checkpoint.read_validation(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["text", "empty", "half", "array", "folder"])
def test_damaged_validation_data_are_one_line(saved, tmp_path, damage):
    folder = without_weights(saved, tmp_path)
    path = folder / "validation.npz"
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(
            {"text": b"no zip", "empty": b"", "half": whole[: len(whole) // 2]}[damage]
        )
    with pytest.raises(LensjaxError, match="edited/validation.npz cannot be read") as caught:
        checkpoint.read_validation(folder)
    assert "\n" not in str(caught.value)


def test_a_draft_is_no_member_and_what_was_set_aside_is_one(tmp_path):
    fake_members(tmp_path, "resnet18", "2", "10", ".10-ab12", ".7.node.4711", ".1.old", ".2.old")
    folders = checkpoint.member_folders(tmp_path, "resnet18")
    assert [path.name for path in folders] == [".1.old", "2", "10"]
    assert list(find_members(tmp_path, "all").values()) == folders


def test_a_folder_of_an_unknown_architecture_is_named(tmp_path):
    fake_members(tmp_path, "resnet18", "0")
    fake_members(tmp_path, "resnet81", "0")
    with pytest.raises(UsageError, match=f"{tmp_path} holds members of resnet81, which is no"):
        find_members(tmp_path, None)


def test_a_member_may_be_read_by_whom_the_umask_lets(saved):
    assert saved.stat().st_mode == saved.parent.stat().st_mode
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in saved.rglob("*"))
