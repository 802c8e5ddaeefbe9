"""The page is one file that says what was found, whatever the names in it."""

import json
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from lensjax.columns import CARRIED, COLUMNS, OF_MEMBERS
from lensjax.data.planes import Cutout
from lensjax.errors import LensjaxError
from lensjax.metrics import evaluate
from lensjax.report import Scored, page, write_report
from lensjax.results import candidate_table
from tests.scored import scored

BLANK = Cutout(np.zeros((8, 8, 3), np.float32), 0.2)


def report(folder: Path, size: int = 3, ids: list[str] | None = None, **changes) -> str:
    label = (np.arange(size) % 3 == 0).astype(np.int8)
    catalogue = Table({"id": np.array(ids or [f"J{k:04d}" for k in range(size)], np.str_)})
    catalogue["label"] = label
    run = {
        "members": [{"name": "resnet18", "weights_sha256": "ab" * 32}],
        "given": size + 2,
        "scored": size,
        "rejected": 2,
        "images_per_second": 1234.5,
        "config": {"data": "</script><b>"},
        "loss": float("nan"),
    }
    best = changes.pop("best", candidate_table(catalogue, scored(size, dec=np.full(size, np.nan))))
    options = {
        "best": best,
        "scored": Scored(
            {"ensemble": best["probability"]}, label[: len(best)], best["logit"], best["logit_std"]
        ),
        "cutouts": [BLANK] * min(len(best), 6),
        "bands": ("g", "r", "i"),
        "impostors": ("ring", "<spiral>"),
        "run": run,
        "rejects": [("J9", "a1.fits: truncated <file>"), ("<J10>", "b.fits: truncated <file>")],
    } | changes
    return write_report(folder, **options).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> str:
    """A page with all figures, which take most of its time: the other tests leave them out."""
    return report(tmp_path_factory.mktemp("page"), size=30)


@pytest.fixture(autouse=True)
def undrawn(drawn, monkeypatch) -> None:
    monkeypatch.setattr(page, "draw", lambda _: {})


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "image", "use", "path", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "image", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def candidates(self) -> list[dict]:
        """What the script of the page is told of each candidate."""
        return json.loads(next(words for words in self.words if words.startswith('{"')))[
            "candidates"
        ]


def test_page_is_well_formed_and_needs_nothing_from_outside(drawn: str) -> None:
    page = Page(drawn)
    assert page.open == []
    assert "default-src 'none'" in drawn and "@import" not in drawn
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#"))
    assert page.count("svg") == 5
    assert page.count("img") == 0 and len(page.candidates) == 6
    for said in ("resnet18", "ab" * 32, "32", "1,234", "truncated <file>", "J0007", "What was run"):
        assert said in page.text, said


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    ids = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{body} &amp; 'x'"]
    page = Page(report(tmp_path, size=3, ids=ids))
    assert page.count("script") == 2 and page.count("img") == 0
    assert sorted(candidate["id"] for candidate in page.candidates) == sorted(ids)
    for name in ids:  # in the table
        assert name in page.words


@pytest.mark.parametrize("size", [0, 1])
def test_few_rows(tmp_path: Path, size: int) -> None:
    page = Page(report(tmp_path, size=size))
    assert page.open == [] and len(page.candidates) == size
    assert ("No cutout could be scored." in page.words) == (size == 0)


def test_metrics_are_shown_with_their_intervals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(50) < 20
    found = evaluate(np.clip(labels * 0.3 + 0.7 * rng.random(50), 0, 1), labels)
    one_class = evaluate([0.5], [1])
    page = Page(report(tmp_path, metrics={"ensemble": found, "vit <b>": one_class}))
    for said in ("{:.4f} {:.4f} – {:.4f}".format(*found.auroc), "20 lenses, 30 others", "vit <b>"):
        assert said in page.text, said
    assert "nan" not in page.text.lower().split()


def test_record_is_whole_and_strict(tmp_path: Path) -> None:
    page = Page(report(tmp_path))
    record = next(words for words in page.words if words.startswith("{\n"))
    assert json.loads(record)["loss"] is None
    assert json.loads(record)["config"] == {"data": "</script><b>"}


def test_gaps_in_carried_labels(tmp_path: Path) -> None:
    given = {candidate["label"] for candidate in Page(report(tmp_path)).candidates}
    assert given == {"0", "1"}
    catalogue = Table({"id": ["a"], "label": np.ma.masked_array([1], mask=[True])})
    table = candidate_table(catalogue, scored(1, ra=np.ones(1), dec=np.array([2.0])))
    (candidate,) = Page(report(tmp_path, best=table)).candidates
    assert candidate["label"] == "" and (candidate["ra"], candidate["dec"]) == (1.0, 2.0)


def test_columns_of_the_user_stand_with_each_candidate_and_in_the_table(tmp_path: Path) -> None:
    catalogue = Table({"id": ["a", "b"], "path": ["x.png", "y.png"], "grade": ["<b>A+</b>", ""]})
    catalogue["z <i>"] = np.ma.masked_array([0.51, 0.7], mask=[False, True])
    for number in range(1200):
        catalogue[f"c{number}"] = [number, -number]
    flag = np.array(["i is <blank>", ""])
    table = candidate_table(catalogue, scored(2, flag=flag, probability=np.array([0.5, 0.4])))
    page = Page(report(tmp_path, best=table, cutouts=[BLANK] * 2))
    text = page.text
    assert text.count("i is <blank>") == 1  # in the table
    first, second = page.candidates
    assert first["flag"] == "i is <blank>" and second["flag"] == ""
    assert first["own"][:3] == [["grade", "<b>A+</b>"], ["z <i>", "0.51"], ["c0", "0"]]
    assert second["own"][0] == ["c0", "0"]
    assert [word for word in page.words if word in ("grade", "c3")] == ["grade", "c3"]
    assert "1,178 more columns of the input" in text and "c1100" not in text


def test_a_column_of_the_user_is_not_taken_for_a_member_by_its_name(tmp_path: Path) -> None:
    catalogue = Table({"id": [1, 2], "ra": [1.0, 2.0], "dec": [1.0, 2.0], "label": [0, 1]})
    catalogue["photoz_probability"] = [35.0, 99.0]
    table = candidate_table(catalogue, scored(2, logit=[0.0, 9.0], probability=[0.25, 0.5]))
    page = Page(report(tmp_path, best=table))
    first = page.candidates[0]
    assert first["own"] == [["photoz_probability", "99"]] and len(first["of_members"]) == 2
    assert "photoz probability" not in page.text
    assert table["photoz_probability"].description is None


def test_reasons_for_rejects_are_counted_with_examples(tmp_path: Path) -> None:
    rejects = [(f"J<{k}>", f"galaxy{k}.fits: no such file: /data/{k}") for k in range(1234)]
    rejects += [(7, "no valid pixel")]
    text = Page(report(tmp_path, rejects=rejects)).text
    assert "galaxy0.fits: no such file: /data/0 1,234 J<0>, J<1>, J<2>, …" in text
    assert "no valid pixel 1 7" in text


def test_what_was_read_and_done_to_it_is_said(tmp_path: Path) -> None:
    record = {
        "members": [], "scored": 3, "data": "folder <x>: 3 cutouts", "masked_pixels": 12345,
        "bands_from": {"g": "plane 1 <of> a.fits", "r": ["b", "c"]},
        "fitted": {"resampled": 1200, "as is": 0},
        "flagged": {"saturated": 2}, "field_of_view": ["3 cutouts show less sky"],
        "notes": ["no metrics: the data have no labels <yet>"],
    }  # fmt: skip
    page = Page(report(tmp_path, run=record))
    words, text = page.words, page.text
    for said in (
        *(
            "folder <x>: 3 cutouts",
            "g: plane 1 <of> a.fits",
            "r: b c",
            "resampled: 1,200",
            "12,345",
        ),
        *("saturated: 2", "3 cutouts show less sky", "no labels <yet>"),
    ):
        assert said in text, said
    assert "Data" in words and "as is: 0" not in text
    # In the table and in what columns mean; no declination is known.
    assert (words.count("ra"), words.count("dec")) == (2, 1)


def test_columns_are_explained(drawn: str) -> None:
    for meaning in (COLUMNS["logit"], COLUMNS["mutual_information"], OF_MEMBERS, CARRIED["label"]):
        assert escape(meaning.description) in drawn
    assert 'title="right ascension, where known (deg)"' in drawn


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensjaxError, match="cannot write"):
        report(tmp_path / "file")
