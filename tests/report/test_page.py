"""The page is one file that says what was found, whatever the names in it."""

import json
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from lensjax.columns import CARRIED, COLUMNS, OF_MEMBERS
from lensjax.errors import LensjaxError
from lensjax.metrics import evaluate
from lensjax.report import write_report
from lensjax.results import OF_ENSEMBLE, candidate_table
from tests.scored import scored


def report(folder: Path, size: int = 30, ids: list[str] | None = None, **changes) -> str:
    rng = np.random.default_rng(0)
    catalogue = Table(
        {
            "id": np.array(ids or [f"J{k:04d}" for k in range(size)], np.str_),
            "label": (rng.random(size) < 0.4).astype(np.int8),
        }
    )
    table = candidate_table(catalogue, scored(size, dec=np.full(size, np.nan)))
    run = {
        "members": [{"name": "resnet18", "weights_sha256": "ab" * 32}],
        "given": size + 2,
        "scored": size,
        "rejected": 2,
        "images_per_second": 1234.5,
        "config": {"data": "</script><b>"},
        "loss": float("nan"),
    }
    options = {
        "candidates": table,
        "pictures": [np.zeros((8, 8, 3))] * min(size, 6),
        "run": run,
        "rejects": [("J9", "a1.fits: truncated <file>"), ("<J10>", "b.fits: truncated <file>")],
    } | changes
    return write_report(folder, **options).read_text(encoding="utf-8")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "image", "use", "path", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "image", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_page_is_well_formed_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = report(tmp_path)
    page = Page(text)
    assert page.open == []
    assert "http:" not in text and "https:" not in text and "@import" not in text
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#"))
    assert page.count("svg") == 5
    assert page.count("img") == 6
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_everything_is_said(tmp_path: Path) -> None:
    text = "".join(Page(report(tmp_path)).words)
    for said in ("resnet18", "ab" * 32, "32", "1,234", "truncated <file>", "J0007", "What was run"):
        assert said in text, said


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    ids = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{body} &amp; 'x'"]
    page = Page(report(tmp_path, size=3, ids=ids))
    assert page.count("script") == 1 and page.count("img") == 3
    for name in ids:
        assert name in "".join(page.words)


@pytest.mark.parametrize("size", [0, 1])
def test_few_rows(tmp_path: Path, size: int) -> None:
    page = Page(report(tmp_path, size=size))
    assert page.open == [] and page.count("img") == size
    assert ("No cutout could be scored." in page.words) == (size == 0)


def test_metrics_are_shown_with_their_intervals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(50) < 20
    found = evaluate(np.clip(labels * 0.3 + 0.7 * rng.random(50), 0, 1), labels)
    one_class = evaluate([0.5], [1])
    text = report(tmp_path, metrics={"ensemble": found, "vit <b>": one_class})
    shown = found.auroc
    assert f"{shown.value:.4f}<small>{shown.low:.4f} – {shown.high:.4f}</small>" in text
    assert "20 lenses, 30 others" in text and "vit &lt;b&gt;" in text
    assert "nan" not in [word.strip().lower() for word in Page(text).words]


def test_record_is_whole_and_strict(tmp_path: Path) -> None:
    page = Page(report(tmp_path))
    record = next(words for words in page.words if words.startswith("{\n"))
    assert json.loads(record)["loss"] is None
    assert json.loads(record)["config"] == {"data": "</script><b>"}


def test_gaps_in_carried_labels(tmp_path: Path) -> None:
    text = report(tmp_path)
    assert 'class="lens">lens<' in text
    table = Table({"rank": [1], "id": ["a"], "ra": [1.0], "dec": [2.0]})
    for name in OF_ENSEMBLE:
        table[name] = [0.5]
    table["label"] = np.ma.masked_array([1], mask=[True])
    text = report(tmp_path, candidates=table, pictures=[np.zeros((4, 4, 3))])
    assert 'class="lens">lens<' not in text and "1.00000 +2.00000" in text


def test_columns_of_the_user_stand_with_each_candidate_and_in_the_table(tmp_path: Path) -> None:
    table = Table({"rank": [1, 2], "id": ["a", "b"], "ra": [1.0, 2.0], "dec": [2.0, 3.0]})
    for name in OF_ENSEMBLE:
        table[name] = [0.5, 0.4]
    table["path"], table["flag"] = ["x.png", "y.png"], ["i is <blank>", ""]
    table["grade"] = ["<b>A+</b>", ""]
    table["z <i>"] = np.ma.masked_array([0.51, 0.7], mask=[False, True])
    for number in range(1200):
        table[f"c{number}"] = [number, -number]
    page = Page(report(tmp_path, candidates=table, pictures=[np.zeros((4, 4, 3))] * 2))
    text = "".join(page.words)
    assert page.words.count("i is <blank>") == 2
    assert "grade <b>A+</b>z <i> 0.51" in text and page.count("b") == 9
    assert [word for word in page.words if word in ("grade", "c3")] == [
        "grade",
        "grade",
        "c3",
        "c3",
        "grade",
        "c3",
    ]
    assert "1,178 more columns of the input" in text and "c1100" not in text


def test_a_column_of_the_user_is_not_taken_for_a_member_by_its_name(tmp_path: Path) -> None:
    catalogue = Table({"id": [1, 2], "ra": [1.0, 2.0], "dec": [1.0, 2.0], "label": [0, 1]})
    catalogue["photoz_probability"] = [35.0, 99.0]
    table = candidate_table(catalogue, scored(2, logit=[0.0, 9.0], probability=[0.25, 0.5]))
    text = "".join(Page(report(tmp_path, candidates=table)).words)
    assert "photoz_probability 99" in text and table["photoz_probability"].description is None


def test_reasons_for_rejects_are_counted_with_examples(tmp_path: Path) -> None:
    rejects = [(f"J<{k}>", f"galaxy{k}.fits: no such file: /data/{k}") for k in range(1234)]
    rejects += [(7, "no valid pixel")]
    text = "".join(Page(report(tmp_path, rejects=rejects)).words)
    assert "galaxy0.fits: no such file: /data/01,234J<0>, J<1>, J<2>, …" in text
    assert "no valid pixel17" in text


def test_what_was_read_and_done_to_it_is_said(tmp_path: Path) -> None:
    record = {
        "members": [], "data": "folder <x>: 3 cutouts", "masked_pixels": 12345,
        "bands_from": {"g": "plane 1 <of> a.fits", "r": ["b", "c"]},
        "fitted": {"resampled": 1200, "as is": 0},
        "flagged": {"saturated": 2}, "field_of_view": ["3 cutouts show less sky"],
        "notes": ["no metrics: the data have no labels <yet>"],
    }  # fmt: skip
    words = Page(report(tmp_path, run=record)).words
    text = "".join(words)
    for said in (
        *("folder <x>: 3 cutouts", "g: plane 1 <of> a.fits", "r: bc", "resampled: 1,200", "12,345"),
        *("saturated: 2", "3 cutouts show less sky", "no labels <yet>"),
    ):
        assert said in text, said
    assert "Data" in words and "as is: 0" not in text
    # In the table and in what columns mean; no declination is known.
    assert (words.count("ra"), words.count("dec")) == (2, 1)


def test_columns_are_explained(tmp_path: Path) -> None:
    text = report(tmp_path)
    for meaning in (COLUMNS["logit"], COLUMNS["mutual_information"], OF_MEMBERS, CARRIED["label"]):
        assert escape(meaning.description) in text
    assert 'title="right ascension, where known (deg)"' in text


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensjaxError, match="cannot write"):
        report(tmp_path / "file")
