"""Scores keep their form from the step to predictions.npz, and come back."""

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from lensjax.data.pixel_statistics import STATISTICS
from lensjax.errors import UsageError
from lensjax.predictions import Predictions, read_probabilities, write_predictions
from tests.scored import scored


def test_predictions_keep_the_order_of_the_input_and_come_back(tmp_path: Path) -> None:
    made, paths = scored(12, unreadable=(3, 7)), [f"f/{row}.fits" for row in range(12)]
    ids = 2**53 + 1 + 2 * np.arange(12)
    write_predictions(tmp_path, Table({"id": ids, "path": paths, "other": ids}), made)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        arrays = dict(file)
    scores, readable = made.scores, made.readable
    expected = {
        "id": ids,
        "path": paths,
        "flag": made.flag,
        "members": made.members,
        "ensemble_logits": scores.logit,
        "ensemble_probs": scores.probability,
        "ensemble_preds": np.where(readable, scores.probability >= 0.5, -1),
    }
    for index, name in enumerate(made.members):
        expected[f"{name}_logits"] = scores.member_logits[index]
        expected[f"{name}_probs"] = scores.member_probs[index]
    assert arrays.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
    assert np.isnan(arrays["ensemble_probs"]).tolist() == (~readable).tolist()
    assert arrays["ensemble_probs"].dtype == np.float32
    catalogue, found = read_probabilities(tmp_path)
    assert catalogue.colnames == ["id", "path"] and catalogue["path"].tolist() == paths
    assert list(found) == ["ensemble", *made.members]
    for name, values in made.probabilities().items():
        np.testing.assert_array_equal(found[name], values)


def test_columns_are_all_of_them() -> None:
    made = scored(5, unreadable=(1,))
    columns = made.columns()
    assert {values.shape for values in columns.values()} == {(5,), (2, 5), (len(STATISTICS), 5)}
    again = Predictions.of_columns(made.members, columns)
    assert again.members == made.members
    for name, values in again.columns().items():
        np.testing.assert_array_equal(values, columns[name])


def test_ties_go_by_logit_and_then_by_input_order() -> None:
    probability = np.array([1, 1, 1, np.nan, 1, 0.5, 1], np.float32)
    logit = np.array([20, 25, 20, 99, np.nan, 30, 20], np.float32)
    made = scored(7, unreadable=(2,), probability=probability, logit=logit)
    assert made.ranking().tolist() == [1, 0, 6, 5, 3]


def test_what_a_cascade_has_dropped_ranks_and_counts_after_all_else(tmp_path: Path) -> None:
    logit = np.array([3, 9, 1, 8, 2], np.float32)
    seen = np.where(np.isin(np.arange(5), (1, 3)), np.nan, 0).astype(np.float32)
    made = scored(
        5,
        probability=1 / (1 + np.exp(-logit)),
        logit=logit,
        member_logits=np.stack([logit, seen]),
        member_probs=np.stack([0 * logit, seen]),
    )
    assert made.ranking().tolist() == [0, 4, 2, 1, 3]
    assert made.complete.tolist() == [True, False, True, False, True]
    assert list(made.probabilities()) == ["ensemble", "resnet18.0"]
    write_predictions(tmp_path, Table({"id": np.arange(5)}), made)
    with np.load(tmp_path / "predictions.npz") as file:
        assert file["ensemble_preds"].tolist() == [1, 0, 1, 0, 1]


def test_object_ids_need_no_pickle(tmp_path: Path) -> None:
    ids = np.array(["a", 7, None], object)
    write_predictions(tmp_path, Table({"id": ids}), scored(3))
    assert read_probabilities(tmp_path)[0]["id"].tolist() == ["a", "7", ""]


def test_no_predictions_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"predictions.npz"):
        read_probabilities(tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(UsageError, match="lacks ensemble_probs and id"):
        read_probabilities(tmp_path / "other.npz")
    (tmp_path / "predictions.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="no plain NPZ"):
        read_probabilities(tmp_path)
    np.savez_compressed(tmp_path / "whole.npz", id=np.arange(5000), ensemble_probs=np.ones(5000))
    whole = (tmp_path / "whole.npz").read_bytes()
    for broken in (b"", b"PK\x03\x04", whole[:-30], whole[:2000] + 500 * b"\xff" + whole[2500:]):
        (tmp_path / "predictions.npz").write_bytes(broken)
        with pytest.raises(UsageError, match="no plain NPZ"):
            read_probabilities(tmp_path)


@pytest.mark.parametrize("values", [np.zeros(2), np.array(["a"] * 3), np.zeros((3, 2))])
def test_predictions_that_are_not_one_number_an_id_are_wrong_use(tmp_path: Path, values) -> None:
    np.savez(tmp_path / "predictions.npz", id=np.arange(3), ensemble_probs=values)
    with pytest.raises(UsageError, match="ensemble are not one number for each of its 3 ids"):
        read_probabilities(tmp_path)
