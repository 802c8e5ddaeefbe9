"""What certify writes into the results of a run, and what it asks of people."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table, vstack
from scipy.special import expit, logit

from lensjax import certification, hats, inference, results
from lensjax.cli import certify, infer
from lensjax.ensemble import calibration
from lensjax.trust import certificate
from lensjax.trust.envelope import false_positives_at_most
from tests.scored import scored

pytestmark = pytest.mark.usefixtures("drawn_once")

ROWS, LENSES = 6000, 100
SAME = {"members": [{"weights_sha256": "0" * 64}]}


def survey(folder: Path, seed: int = 0, **columns: object) -> np.ndarray:
    """Writes the results of a run over lenses, the first rows, and others, and returns logits."""
    rng = np.random.default_rng(seed)
    label = (np.arange(ROWS) < LENSES).astype(np.int64)
    of_ensemble = (rng.normal(size=ROWS) + 6 * label).astype(np.float32)
    predictions = scored(ROWS, logit=of_ensemble, probability=expit(of_ensemble))
    catalogue = Table({"id": np.arange(ROWS)} | columns)
    results.write_outputs(folder, catalogue, predictions)
    results.write_json(folder / "run.json", SAME)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *enumerate(label.tolist())])
    return of_ensemble


def candidates(folder: Path) -> Table:
    return next(results.read_candidates(folder))[1]


def digests(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in results.CANDIDATES
    }


def test_the_promise_stands_in_the_candidates_and_in_words(run, tmp_path):
    survey(tmp_path)
    command = ("--run", tmp_path, "--labels", tmp_path / "labels.csv", "--average")
    ended = run(certify.main, *command)
    assert ended.status == 0, ended.error
    table = candidates(tmp_path)
    drawn = np.asarray(table["calibration"])
    assert drawn.sum() == ROWS / 2
    lens = np.asarray(table["id"]) < LENSES
    negatives, others = table["logit"][drawn & ~lens], np.asarray(table["logit"])[~drawn]
    expected = false_positives_at_most(negatives, others)
    np.testing.assert_array_equal(table["false_positives_at_most"][~drawn], expected)
    np.testing.assert_allclose(
        table["purity_at_least"][~drawn], 1 - expected / np.arange(1, others.size + 1)
    )
    assert table["p_value"].mask[drawn].all() and not table["p_value"].mask[~drawn].any()
    promise = json.loads((tmp_path / "run.json").read_text())["promise"]
    assert promise["calibration_lenses"] == (drawn & lens).sum()
    listed = promise["certified"]
    assert (~lens & ~drawn)[: listed["rank"]].sum() <= listed["false"] <= listed["rows"] / 2
    assert f"{listed['rows']:,} candidates down to rank {listed['rank']:,}" in ended.out
    assert "Benjamini-Hochberg: the first" in ended.out
    # Once more: the same rows calibrate, and the files are the same to the byte.
    before = digests(tmp_path)
    run(certify.main, *command)
    assert digests(tmp_path) == before


def test_the_columns_lie_where_a_run_writes_them_and_in_every_part(run, tmp_path, monkeypatch):
    survey(tmp_path / "one", tile=np.arange(ROWS))
    run(certify.main, "--run", tmp_path / "one", "--labels", tmp_path / "one" / "labels.csv")
    monkeypatch.setattr(results, "PARTITION_ROWS", 2500)
    survey(tmp_path / "many", tile=np.arange(ROWS))
    run(certify.main, "--run", tmp_path / "many", "--labels", tmp_path / "many" / "labels.csv")
    parts = [table for _, table in results.read_candidates(tmp_path / "many")]
    assert list(map(len, parts)) == [2500, 2500, 1000]
    whole = candidates(tmp_path / "one")
    assert whole.colnames.index("calibration") == whole.colnames.index("vit_b16_probability") + 1
    assert whole.colnames[-1] == "tile"
    for name in whole.colnames:
        pieces = np.ma.concatenate([np.ma.asarray(part[name]) for part in parts])
        np.testing.assert_array_equal(np.ma.asarray(whole[name]).filled(-7), pieces.filled(-7))


def test_the_pieces_of_the_sky_have_the_promise_too(run, tmp_path, monkeypatch):
    survey(tmp_path, tile=np.arange(ROWS))
    command = ("--run", tmp_path, "--labels", tmp_path / "labels.csv")
    run(certify.main, *command)
    assert not (tmp_path / hats.FOLDER).exists()
    monkeypatch.setattr(hats.write, "__defaults__", (1000,))
    survey(tmp_path, tile=np.arange(ROWS))
    results.write_hats(tmp_path, candidates(tmp_path))
    before = set((tmp_path / hats.FOLDER).rglob("*"))
    run(certify.main, *command)
    assert set((tmp_path / hats.FOLDER).rglob("*")) == before
    pieces = [Table.read(path) for path in before if path.suffix == ".parquet"]
    assert len(pieces) > 5
    found, whole = vstack(pieces), candidates(tmp_path)
    assert found.colnames == whole.colnames and "purity_at_least" in found.colnames
    found.sort("rank")
    for name in whole.colnames:
        one, other = (np.ma.asarray(table[name]).filled(-7) for table in (found, whole))
        np.testing.assert_array_equal(np.nan_to_num(one, nan=-7), other, name)


def test_a_column_of_the_users_of_the_same_name_is_kept_and_draws_nothing(run, tmp_path):
    night = np.arange(ROWS) % 7
    survey(tmp_path, calibration=night)
    command = ("--run", tmp_path, "--labels", tmp_path / "labels.csv")
    for _ in range(2):
        ended = run(certify.main, *command)
        assert ended.status == 0, ended.error
        table = candidates(tmp_path)
        assert np.asarray(table["calibration"]).sum() == ROWS / 2
        np.testing.assert_array_equal(table["calibration_input"], night[np.asarray(table["id"])])


def test_lenses_that_nobody_looked_at_leave_no_list(run, tmp_path):
    survey(tmp_path)
    rows = [[i, 0] for i in range(LENSES, ROWS)]
    with (tmp_path / "others.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *rows])
    ended = run(certify.main, "--run", tmp_path, "--labels", tmp_path / "others.csv")
    assert "no list is certified" in ended.out
    assert json.loads((tmp_path / "run.json").read_text())["promise"]["certified"] is None


def test_a_run_shows_what_is_to_be_looked_at_and_keeps_what_was_seen(
    run, members, stack_file, tmp_path, monkeypatch
):
    unlabelled = tmp_path / "stack.npz"
    arrays = dict(np.load(stack_file))
    np.savez(unlabelled, **{name: arrays[name] for name in arrays if name != "label"})
    monkeypatch.setattr(certificate, "INSPECTED", 4)
    output = tmp_path / "results"
    ended = run(
        infer.main,
        *("--checkpoints", members, "--data", unlabelled, "--output", output),
        *("--max-false-discovery", 0.3, "--prevalence", 0.01, "--mc-samples", 1),
    )
    assert ended.status == 0, ended.error
    table = candidates(output)
    ratio = np.asarray(table["log_likelihood_ratio"], float)
    np.testing.assert_allclose(ratio, np.clip(table["logit"], -np.log(101), np.log(101)), rtol=1e-6)
    expected = expit(ratio + logit(0.01))
    np.testing.assert_allclose(table["survey_probability"], expected, rtol=1e-5)
    drawn = np.asarray(table["calibration"])
    with (output / "inspection.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = [table["id"][where][:4].tolist() for where in (drawn, ~drawn)]
    assert sorted(int(row["id"]) for row in rows) == sorted(sum(best, []))
    assert {row["label"] for row in rows} == {"-1"}
    page = (output / "inspection.html").read_text()
    assert all(f'"id": "{row["id"]}"' in page for row in rows)
    assert '"score":' not in page and '"of_members":' not in page
    # What was seen is kept when the page is written again.
    seen = {row["id"]: str(int(int(row["id"]) in best[0])) for row in rows}
    with (output / "inspection.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *seen.items()])
    ended = run(certify.main, "--run", output, "--inspect", 4)
    assert ended.status == 0, ended.error
    with (output / "inspection.csv").open(newline="") as file:
        assert {row["id"]: row["label"] for row in csv.DictReader(file)} == seen
    ended = run(certify.main, "--run", output, "--labels", output / "inspection.csv")
    assert "the 4 lenses are taken out" in ended.out
    graded = [(id_, "B" if label == "1" else "X") for id_, label in seen.items()]
    with (tmp_path / "grades.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "grade"), *graded])
    ended = run(certify.main, "--run", output, "--labels", tmp_path / "grades.csv")
    assert "the 4 lenses are taken out" in ended.out
    ended = run(certify.main, "--run", output, "--inspect", 1)
    assert ended.status == 2 and "move it to where it is safe" in ended.error


def test_the_cut_that_keeps_a_share_of_the_lenses(run, tmp_path):
    mine = survey(tmp_path / "mine")
    radius = np.where(np.arange(ROWS) < LENSES, 0.5 + np.arange(ROWS) / 100, 0)
    label = (np.arange(ROWS) < LENSES).astype(np.int64)
    theirs = survey(tmp_path / "theirs", seed=1, label=label, einstein_radius=radius)
    command = ("--run", tmp_path / "mine", "--completeness", 0.6, "--lenses", tmp_path / "theirs")
    ended = run(
        certify.main, *command, "--labels", tmp_path / "mine" / "labels.csv", "--strata", "None"
    )
    assert ended.status == 0, ended.error
    place = [k for k in range(1, LENSES) if _fails(k) <= 0.05][-1]
    cut = np.sort(theirs[:LENSES])[place - 1]
    assert f"the {(mine >= cut).sum():,} candidates of logit {cut:.3f}" in ended.out
    low, high = re.search(r"from (\S+) to (\S+) of the cutouts are lenses", ended.out).groups()
    assert 0.004 < float(low) < LENSES / ROWS < float(high) < 0.04
    command = (*command, "--labels", tmp_path / "mine" / "labels.csv", "--strata")
    ended = run(certify.main, *command, "einstein_radius")
    assert "in each of 3 strata" in ended.out and "einstein_radius from 0.5 to 1.49" in ended.out
    ended = run(certify.main, *command, "redshift")
    assert ended.status == 2 and "no column redshift" in ended.error
    ended = run(certify.main, *command, "einstein_radius", "--completeness", 0.99)
    assert ended.status == 2 and "lenses are too few" in ended.error
    results.write_json(tmp_path / "theirs" / "run.json", {"members": [{"weights_sha256": "1"}]})
    ended = run(certify.main, *command, "einstein_radius")
    assert ended.status == 2 and "other members" in ended.error


def _fails(place: int) -> float:
    from scipy import stats

    return stats.binom.cdf(place - 1, LENSES, 0.4)


@pytest.mark.parametrize(("false_share", "known"), [(0, 12), (0.05, 20), (0.09, 28), (0.2, 57)])
def test_what_a_promise_takes_is_what_simulations_found(false_share, known):
    found = certificate.needs(
        1e-3, survey=10**7, completeness=0.5, max_false_discovery=0.5, false_share=false_share
    )
    assert found.negatives * 1e-3 * 0.5 == pytest.approx(known, rel=0.1)
    # All lenses above the cut are looked at, and the negatives among them.
    assert found.inspections >= found.negatives * 0.5e-3 / (1 - false_share)


def test_the_plan_is_a_table(run):
    ended = run(certify.main, "--plan", "--prevalence", 0.01, "--survey", 100_000)
    assert ended.status == 0 and "rows to draw" in ended.out
    assert len(ended.out.splitlines()) == 3 + len(certification.FALSE_SHARES)


def test_what_a_cascade_has_dropped_is_below_all_that_is_listed(run, tmp_path):
    logit = survey(tmp_path)
    dropped = np.arange(ROWS) % 3 == 1
    seen = np.where([np.zeros(ROWS, bool), dropped], np.nan, 0).astype(np.float32)
    predictions = scored(
        ROWS, logit=logit, probability=expit(logit), member_logits=seen, member_probs=seen
    )
    results.write_outputs(tmp_path, Table({"id": np.arange(ROWS)}), predictions)
    ended = run(certify.main, "--run", tmp_path, "--labels", tmp_path / "labels.csv")
    assert ended.status == 0, ended.error
    table = candidates(tmp_path)
    last = np.asarray(table["id"])[-dropped.sum() :]
    assert set(last) == set(np.flatnonzero(dropped))
    drawn, id_ = np.asarray(table["calibration"]), np.asarray(table["id"])
    ranked = np.where(dropped, -np.inf, logit)[id_]
    negatives = ranked[drawn & (id_ >= LENSES)]
    expected = false_positives_at_most(negatives, ranked[~drawn])
    np.testing.assert_array_equal(table["false_positives_at_most"][~drawn], expected)
    assert len(np.unique(table["p_value"][~drawn & dropped[id_]])) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((), "--run is missing"),
        (("--run", "nowhere"), "no candidates.parquet"),
        (("--max-false-discovery", 1.5), "between 0 and 1"),
        (("--completeness", 0.5), "needs --lenses"),
        (("--calibration", 0), "at least 1"),
    ],
)
def test_wrong_use_is_one_line(run, wrong, said):
    ended = run(certify.main, *wrong)
    assert ended.status == 2 and said in ended.error and ended.error.count("\n") == 1


def test_what_cannot_be_promised_is_refused_before_anything_is_scored(
    run, members, stack_file, tmp_path, monkeypatch
):
    def scored_all_the_same(*_):
        raise AssertionError

    monkeypatch.setattr(inference, "score_here", scored_all_the_same)
    command = ("--checkpoints", members, "--data", stack_file, "--output", tmp_path / "results")
    ended = run(infer.main, *command, "--max-false-discovery", 0.5, "--calibration", 22)
    assert ended.status == 2 and "leave others to certify" in ended.error
    monkeypatch.setattr(calibration, "shared_labels", lambda _: None)
    ended = run(infer.main, *command, "--prevalence", 0.01)
    assert ended.status == 2 and "share validation data" in ended.error


def test_rows_that_cannot_be_drawn_are_refused(run, tmp_path):
    survey(tmp_path)
    ended = run(certify.main, "--run", tmp_path, "--calibration", ROWS)
    assert ended.status == 2 and "leave others to certify" in ended.error
