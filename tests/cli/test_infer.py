"""scripts/infer.py as its user sees it: what it writes, resumes, rejects and refuses."""

import dataclasses
import json
import re
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from lensjax import demonstration, inference, ledger
from lensjax.cli import infer
from lensjax.ensemble import checkpoint, scoring
from tests import networks
from tests.cli.conftest import CUTOUTS
from tests.ensemble.members import random_member

pytestmark = pytest.mark.usefixtures("undrawn")  # but what `results` shares is drawn
SCORES = [
    *("rank", "id", "ra", "dec", "probability", "logit", "logit_std"),
    *("total_entropy", "aleatoric_entropy", "mutual_information", "flag"),
]


def arguments(members, data, output, *more):
    return (
        *("--ensemble", "vit_s16", "--checkpoints", members, "--data", data),
        *("--output", output, "--batch-size", 8, "--mc-samples", 2, *more),
    )


@pytest.fixture(autouse=True, scope="module")
def scoring_without_implicit_transfers():
    score = scoring.score

    def guarded(*arguments, **options):
        with jax.transfer_guard("disallow"):
            return score(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scoring, "score", guarded)
        yield


@pytest.fixture(scope="module")
def results(members, stack_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "first"
    infer.main([str(a) for a in arguments(members, stack_file, output)])
    return output


def test_the_output_directory_is_the_contract(results):
    assert {path.name for path in results.iterdir()} == {
        *("candidates.parquet", "candidates.csv", "candidates.fits", "predictions.npz"),
        *("rejects.csv", "mosaic.png", "report.html", "run.json"),
        *("candidates.vot", "candidates.reg", "searched.moc.fits", "searched.moc.json"),
    }


def test_packed_cutouts_score_alike(run, members, stack_file, results, tmp_path):
    packed = tmp_path / "packed"
    ended = run(infer.main, "--data", stack_file, "--pack", packed)
    assert ended.status == 0, ended
    assert f"{CUTOUTS} packed + 0 rejected = {CUTOUTS} given" in ended.out
    ended = run(infer.main, *arguments(members, packed, tmp_path / "out"))
    assert ended.status == 0, ended
    found, expected = (
        np.load(folder / "predictions.npz", allow_pickle=False)
        for folder in (tmp_path / "out", results)
    )
    for name in ("id", "ensemble_logits", "vit_s16.0_probs"):
        np.testing.assert_array_equal(found[name], expected[name])
    again = run(infer.main, "--data", stack_file, "--pack", packed)
    assert again.status == 2 and "holds shards already" in again.error


OF_TRUST = [
    *("log_likelihood_ratio", "beyond_calibration", "probability_low", "probability_high"),
    *("member_disagreement", "outlier_distance", "outlier_p_value"),
]


@pytest.mark.parametrize("form", ["parquet", "csv", "fits"])
def test_the_catalogue_opens_in_astropy_best_first(results, form):
    table = Table.read(results / f"candidates.{form}")
    members = [f"vit_s16.{index}_probability" for index in range(2)]
    assert table.colnames == [*SCORES, *members, *OF_TRUST, "_healpix_29", "path", "label", "tile"]
    assert len(table) == CUTOUTS
    assert (np.diff(np.asarray(table["probability"])) <= 0).all()
    rows = np.asarray(table["id"]).astype(np.int64) - 2**60
    assert sorted(rows) == list(range(CUTOUTS))
    assert [str(tile) for tile in table["tile"]] == [f"tile {row}" for row in rows]
    np.testing.assert_allclose(table["ra"], np.linspace(10, 11, CUTOUTS)[rows])


def test_predictions_are_in_input_order_and_agree_with_the_catalogue(results):
    predictions = np.load(results / "predictions.npz", allow_pickle=False)
    np.testing.assert_array_equal(predictions["id"], 2**60 + np.arange(CUTOUTS))
    table = Table.read(results / "candidates.fits")
    rows = np.asarray(table["id"]) - 2**60
    np.testing.assert_array_equal(predictions["ensemble_probs"][rows], table["probability"])
    np.testing.assert_array_equal(
        predictions["vit_s16.1_probs"][rows], table["vit_s16.1_probability"]
    )


def test_the_record_says_what_was_done(results):
    record = json.loads((results / "run.json").read_text())
    assert (record["given"], record["scored"], record["rejected"]) == (CUTOUTS, CUTOUTS, 0)
    assert [member["name"] for member in record["members"]] == ["vit_s16.0", "vit_s16.1"]
    assert all(len(member["weights_sha256"]) == 64 for member in record["members"])
    shares = [member["share"] for member in record["members"]]
    assert shares[0] > 0.85 and sum(shares) == pytest.approx(1.0)
    assert record["shares_from"] == "stacking on 200 validation objects"
    assert record["config"]["mc_samples"] == 2 and record["fitted"] == {"as is": CUTOUTS}
    assert record["compile_seconds"] > 0 and record["images_per_second"] > 0
    assert record["seconds_to_first_batch"] > record["compile_seconds"]
    assert 0 <= record["waiting_share"] < 1
    assert record["peak_memory_bytes"] > 1e8
    assert set(record["metrics"]) == {"vit_s16.0", "vit_s16.1", "ensemble"}


def test_pictures_can_be_looked_at(results):
    width, height = Image.open(results / "mosaic.png").size
    assert width > 400 and height > 400
    page = (results / "report.html").read_text()
    assert str(2**60 + 3) in page and "http://" not in page and 'src="http' not in page


def predictions_of(folder) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_same_scores(first, second, tolerance=0.0):
    """`tolerance` is in units of the largest value: float32 rounding grows with the logits."""
    first, second = predictions_of(first), predictions_of(second)
    assert first.keys() == second.keys()
    for name, values in first.items():
        if values.dtype.kind == "f":
            largest = np.abs(values).max()
            np.testing.assert_allclose(second[name], values, atol=tolerance * largest, rtol=0)


@pytest.mark.parametrize(
    "more",
    [("--batch-size", 5), ("--no-batch-parallel",), ("--batch-size", "auto")],
)
def test_scores_do_not_depend_on_the_way_they_are_computed(
    run, results, members, stack_file, tmp_path, more
):
    ended = run(infer.main, *arguments(members, stack_file, tmp_path / "r", *more))
    assert ended.status == 0
    assert_same_scores(results, tmp_path / "r", 5e-6)


def test_a_batch_is_as_large_as_memory_and_data_allow(run, members, stack_file, tmp_path):
    ended = run(infer.main, *arguments(members, stack_file, tmp_path / "r", "--batch-size", "auto"))
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["batch_size"] == record["cutouts_at_once"] == 32
    assert 1e5 < record["step_bytes"] < record["memory_limit_bytes"]
    assert re.search(r"a step takes 32 cutouts: 0\.\d\d GiB of \d+\.\d\d GiB\n", ended.out)


def test_the_benchmark_sets_one_step_beside_one_by_one(run, members, stack_file, tmp_path):
    more = ("--benchmark", "--batch-size", 5)
    ended = run(infer.main, *arguments(members, stack_file, tmp_path / "r", *more))
    rates = json.loads((tmp_path / "r" / "run.json").read_text())["benchmark"]
    assert set(rates) == {"one_step", "one_by_one"} and min(rates.values()) > 0
    assert f"in one step {rates['one_step']:.4g} cutouts/s, one by one" in ended.out


@pytest.mark.parametrize("then", ["auto", 5])
def test_a_killed_run_goes_on_where_it_was(
    run, results, members, stack_file, tmp_path, monkeypatch, then
):
    output = tmp_path / "r"
    monkeypatch.setattr(ledger, "SAVE_INTERVAL_SECONDS", -1.0)
    saved = ledger.Ledger.save
    calls = []

    def save_then_die(parts):
        saved(parts)
        calls.append(parts)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ledger.Ledger, "save", save_then_die)
    assert run(infer.main, *arguments(members, stack_file, output)).status == 130
    assert not (output / "predictions.npz").exists()
    monkeypatch.setattr(ledger.Ledger, "save", saved)
    again = arguments(members, stack_file, output, "--batch-size", then)
    assert run(infer.main, *again).status == 0
    assert json.loads((output / "run.json").read_text())["scored_before"] == 16
    assert_same_scores(results, output, 5e-6)
    assert not (output / inference.PARTS).exists()


def test_parts_scored_apart_become_one_catalogue(run, results, members, stack_file, tmp_path):
    """Two of three parts; the last run scores what is missing."""
    output = tmp_path / "r"
    for number in (3, 1):
        command = arguments(members, stack_file, output, "--part", f"{number}/3")
        ended = run(infer.main, *command)
        first, last = CUTOUTS * (number - 1) // 3, CUTOUTS * number // 3
        words = f"part {number}/3: rows {first} to {last} of {CUTOUTS} are scored"
        assert ended.status == 0 and words in ended.out, ended
        assert not (output / "candidates.csv").exists()
    ended = run(infer.main, *arguments(members, stack_file, output))
    assert f"{CUTOUTS} scored + 0 rejected = {CUTOUTS} given" in ended.out
    record = json.loads((output / "run.json").read_text())
    assert record["scored_before"] == CUTOUTS - (CUTOUTS * 2 // 3 - CUTOUTS // 3)
    assert_same_scores(results, output, 5e-6)
    assert not (output / inference.PARTS).exists()


@pytest.fixture
def folder(tmp_path, images):
    """A folder of FITS cubes, one of them truncated, one without a valid pixel, one no image."""
    path = tmp_path / "cutouts"
    path.mkdir()
    for row, image in enumerate(images[:5]):
        fits.writeto(path / f"galaxy{row}.fits", image.transpose(2, 0, 1))
    whole = (path / "galaxy0.fits").read_bytes()
    (path / "truncated.fits").write_bytes(whole[: len(whole) // 2])
    fits.writeto(path / "nothing.fits", np.full((3, 16, 16), np.nan, np.float32))
    (path / "text.png").write_text("not a picture")
    return path


def test_unreadable_cutouts_are_rejected_and_the_run_goes_on(run, members, folder, tmp_path):
    ended = run(infer.main, *arguments(members, folder, tmp_path / "r", "--pixel-scale", 0.2))
    assert ended.status == 0
    assert "5 scored + 3 rejected = 8 given" in ended.out
    rejects = Table.read(tmp_path / "r" / "rejects.csv")
    assert sorted(rejects["id"]) == ["nothing", "text", "truncated"]
    assert all(len(reason) > 5 for reason in rejects["reason"])
    assert len(Table.read(tmp_path / "r" / "candidates.csv")) == 5


def test_a_run_in_which_nothing_can_be_read_still_accounts_for_all(run, members, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "b.png"):
        (data / name).write_text("no")
    ended = run(infer.main, *arguments(members, data, tmp_path / "r"))
    assert ended.status == 1 and "error: none of the 2 cutouts could be scored" in ended.error
    assert len(Table.read(tmp_path / "r" / "rejects.csv")) == 2
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert (record["given"], record["scored"], record["rejected"]) == (2, 0, 2)
    assert not (tmp_path / "r" / inference.PARTS).exists()


def test_a_catalogue_keeps_its_columns(run, members, folder, tmp_path):
    catalogue = tmp_path / "list.csv"
    catalogue.write_text(
        "path,id,ra,dec,note\n"
        'cutouts/galaxy1.fits,"M 51, é",202.47,47.2,first\n'
        "cutouts/missing.fits,gone,1.0,2.0,second\n"
    )
    ended = run(infer.main, *arguments(members, catalogue, tmp_path / "r", "--pixel-scale", 0.2))
    assert ended.status == 0
    table = Table.read(tmp_path / "r" / "candidates.csv")
    assert (table["id"][0], table["ra"][0], table["note"][0]) == ("M 51, é", 202.47, "first")
    assert list(Table.read(tmp_path / "r" / "rejects.csv")["id"]) == ["gone"]


def test_members_are_applied_as_they_were_trained(run, members, images, tmp_path):
    """Other band order, finer pixels and another flux unit are all brought to the member's."""
    finer = images.repeat(2, axis=1).repeat(2, axis=2)
    for name, stack, bands, scale in (
        ("plain", images, ["g", "r", "i"], 0.2),
        ("turned", images[..., ::-1] * 1e-12, ["i", "r", "g"], 0.2),
        ("finer", finer, ["g", "r", "i"], 0.1),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, images=stack, bands=np.array(bands), pixel_scale=np.array(scale))
        assert run(infer.main, *arguments(members, path, tmp_path / name)).status == 0
    assert_same_scores(tmp_path / "plain", tmp_path / "turned", 1e-4)
    plain, fine = (
        predictions_of(tmp_path / name)["ensemble_logits"] for name in ("plain", "finer")
    )
    assert np.corrcoef(plain, fine)[0, 1] > 0.7
    fitted = json.loads((tmp_path / "finer" / "run.json").read_text())["fitted"]
    assert fitted == {"resampled": CUTOUTS}


def test_wrong_use_is_one_clear_line(run, members, stack_file, tmp_path):
    empty, texts = tmp_path / "empty", tmp_path / "texts"
    empty.mkdir()
    texts.mkdir()
    (texts / "readme.txt").write_text("hello")
    two_bands = tmp_path / "two.npz"
    np.savez(two_bands, images=np.zeros((3, 16, 16, 2)), bands=np.array(["g", "z"]))
    cases = {
        "no such file": ("--data", tmp_path / "nowhere"),
        "empty": ("--data", empty),
        "texts": ("--data", texts),
        "bands": ("--data", two_bands),
        "scripts/train.py": ("--checkpoints", tmp_path / "nothing"),
        "resnet18": ("--ensemble", "resnet19"),
        "--batch-size": ("--batch-size", 0),
        "--batch-size: no type matching INT|{auto} could be instantiated from": (
            "--batch-size",
            "all",
        ),
        "name a number": ("--batch-size", "auto", "--no-batch-parallel"),
        "drop the latter": ("--benchmark", "--no-batch-parallel"),
        "--top": ("--top", -1),
        "--mc-samplez": ("--mc-samplez", 3),
        "K from 1 to N": ("--part", "4/3"),
        "choice 'median' for": ("--fusion", "median"),
    }
    for words, more in cases.items():
        ended = run(infer.main, *arguments(members, stack_file, tmp_path / "r", *more))
        assert ended.status == 2, (words, ended)
        assert ended.error.startswith("error: ") and ended.error.count("\n") == 1, ended.error
        assert words in ended.error


def test_an_output_that_is_a_file_is_wrong_use(run, members, stack_file, tmp_path):
    (tmp_path / "r").write_text("in the way")
    ended = run(infer.main, *arguments(members, stack_file, tmp_path / "r"))
    assert ended.status == 2 and "choose another --output" in ended.error


def test_a_damaged_member_is_one_clear_line(run, members, stack_file, tmp_path):
    """The record is read first, the weights while the step is compiled."""
    record = json.loads((members / "vit_s16" / "1" / "member.json").read_text())
    damages = {
        "member.json": lambda member: (member / "member.json").write_text("{"),
        "cannot be read": lambda member: shutil.rmtree(member / "weights"),
        "sha256": lambda member: (member / "member.json").write_text(
            json.dumps(record | {"weights_sha256": "0" * 64})
        ),
    }
    for words, damage in damages.items():
        copy = tmp_path / words / "members"
        shutil.copytree(members, copy)
        damage(copy / "vit_s16" / "1")
        output = tmp_path / words / "r"
        ended = run(infer.main, *arguments(copy, stack_file, output))
        assert ended.status == 1 and ended.error.count("\n") == 1 and words in ended.error, ended
        assert not (output / inference.PARTS).exists()


def test_a_full_disk_is_one_clear_line(run, members, stack_file, tmp_path):
    """A limit on the size of files stands in for a full disk: writes fail alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        ended = run(infer.main, *arguments(members, stack_file, tmp_path / "r"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signal_before)
    assert ended.status == 1, ended
    lines = [line for line in ended.error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "cannot write" in lines[0] and str(tmp_path) in lines[0]


def test_members_without_data_are_wrong_use(run, members, tmp_path):
    ended = run(infer.main, "--checkpoints", members, "--output", tmp_path / "r")
    assert ended.status == 2 and "--data is missing" in ended.error


def test_without_an_ensemble_all_members_that_there_are_score(run, members, stack_file, tmp_path):
    command = ("--checkpoints", members, "--data", stack_file, "--output", tmp_path / "r")
    ended = run(infer.main, *command, "--batch-size", 8, "--mc-samples", 2)
    assert ended.status == 0, ended
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert [member["name"] for member in record["members"]] == ["vit_s16.0", "vit_s16.1"]
    assert record["left_out"] == [] and "not run" not in ended.out


def test_the_stacked_score_is_the_same_without_an_architecture_that_has_no_share(
    run, members, stack_file, tmp_path
):
    shutil.copytree(members, tmp_path / "members")
    useless = checkpoint.load_member(members / "vit_s16" / "1")
    with networks.small():
        other = random_member("light_transformer", 5, useless.info.preprocessing)
    other = dataclasses.replace(other, validation=useless.validation)
    checkpoint.save_member(tmp_path / "members" / "light_transformer" / "0", other)
    command = ("--checkpoints", tmp_path / "members", "--data", stack_file, "--batch-size", 8)
    for name, more in (("useful", ()), ("everyone", ("--ensemble", "all"))):
        ended = run(infer.main, *command, "--output", tmp_path / name, *more)
        assert ended.status == 0, ended
        told = "without a share, so not run: light_transformer (--ensemble all runs them too)"
        assert (told in ended.out) == (name == "useful")
    useful, everyone = (predictions_of(tmp_path / name) for name in ("useful", "everyone"))
    assert "light_transformer_probs" in everyone.keys() - useful.keys()
    found, wanted = useful["ensemble_logits"], everyone["ensemble_logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_smoke_run_takes_the_members_that_there_are_and_data_where_they_are_named(
    members, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(demonstration, "held_back", lambda smoke: tmp_path / f"smoke-{smoke}.npz")
    for data, scored in (("own.npz", "own.npz"), (None, str(tmp_path / "smoke-True.npz"))):
        asked = {"smoke": True, "data": data, "checkpoints": members}
        options = infer._with_defaults(infer.InferConfig(**asked, ensemble="vit_s16:4,vit_b16"))
        assert (options.data, options.checkpoints) == (scored, members)
        assert options.ensemble == "vit_s16"
        assert "holds no vit_b16 members: goes on with vit_s16" in capsys.readouterr().out


def test_nothing_is_simulated_for_members_that_are_not_there(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demonstration, "held_back", lambda smoke: pytest.fail("drawn in vain"))
    ended = run(infer.main, "--ensemble", "resnet18,vit_b16")
    assert ended.status == 2 and "checkpoints holds no resnet18 members" in ended.error


def test_what_is_missing_in_a_cutout_is_said_of_it(run, members, images, tmp_path):
    odd = images[:6].copy()
    odd[1, ..., 1], odd[2, ..., :2], odd[3], odd[4], odd[5, 2, 3, 0] = np.nan, 5.0, 0, 3e38, -3e38
    np.savez(tmp_path / "odd.npz", images=odd, bands=np.array(["g", "r", "i"]), pixel_scale=0.2)
    ended = run(infer.main, *arguments(members, tmp_path / "odd.npz", tmp_path / "out"))
    assert ended.status == 0, ended.error
    flags = ["", "no data in r", "no data in g, r", "", "", ""]
    predictions = np.load(tmp_path / "out" / "predictions.npz", allow_pickle=False)
    assert predictions["flag"].tolist() == flags
    assert np.isfinite(predictions["ensemble_probs"]).tolist() == [True] * 3 + [False] * 2 + [True]
    for name in ("candidates.parquet", "candidates.csv", "candidates.fits"):
        table = Table.read(tmp_path / "out" / name)
        table.convert_bytestring_to_unicode()
        found = np.ma.filled(np.ma.asarray(table["flag"]), "")
        assert found.tolist() == [flags[row] for row in table["id"]], name
    rejects = Table.read(tmp_path / "out" / "rejects.csv")
    assert rejects["reason"].tolist() == ["all pixels are equal (0)", "no valid pixel"]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [record[name] for name in ("given", "scored", "rejected", "flagged")] == [6, 4, 2, 2]
    assert record["flags"] == {"no data in r": 1, "no data in g, r": 1}
    assert record["bands_from"] == {b: f"channel {i + 1} ({b})" for i, b in enumerate("gri")}


def test_another_field_of_view_is_told_once_and_far_another_one_refused(
    run, members, images, tmp_path
):
    for name, scale in (("half", 0.1), ("tenth", 0.02)):
        np.savez(
            tmp_path / f"{name}.npz", images=images[:9], bands=["g", "r", "i"], pixel_scale=scale
        )
    ended = run(infer.main, *arguments(members, tmp_path / "half.npz", tmp_path / "out"))
    assert ended.status == 0, ended.error
    warning = "9 of 9 cutouts show half or less, or twice or more, of the field of view"
    assert ended.error.count(f"warning: {warning}") == 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["field_of_view"]["half or less"] == record["scored"] == 9
    assert warning in record["warnings"][0]
    ended = run(infer.main, *arguments(members, tmp_path / "tenth.npz", tmp_path / "no"))
    assert ended.status == 2 and ended.error.count("\n") == 1
    assert "0.32 arcsec, more than four times less than the member's 3.2 arcsec" in ended.error
    assert not (tmp_path / "no").exists()


def test_the_catalogue_of_a_run_is_data_for_another(run, results, members, tmp_path):
    """Its best five, whose cutouts lie in a stack."""
    best = Table.read(results / "candidates.parquet")[:5]
    best.write(tmp_path / "best.csv")
    ended = run(infer.main, *arguments(members, tmp_path / "best.csv", tmp_path / "again"))
    assert ended.status == 0 and "5 scored + 0 rejected = 5 given" in ended.out, ended
    again = Table.read(tmp_path / "again" / "candidates.parquet")
    assert again["id"].tolist() == best["id"].tolist()
    assert again["path"].tolist() == best["path"].tolist()
    np.testing.assert_allclose(again["logit"], best["logit"], rtol=1e-4)
    assert again["rank_input"].tolist() == [1, 2, 3, 4, 5]
