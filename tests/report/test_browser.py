"""People grade on the page, in a real browser: what they give is kept, and comes out again."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from lensjax import controls
from lensjax.controls import Shown
from lensjax.cutouts import Cutouts
from lensjax.data.planes import Cutout
from lensjax.labels import read_labels
from lensjax.report import Scored, colour, page, write_inspection, write_report
from lensjax.results import candidate_table
from tests.scored import scored

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"there is no browser at {CHROMIUM}"),
]
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
BANDS = ("g", "r", "i")
IMPOSTORS = ("ring", "spiral <b>", "merger")
ODD = ['a,"b"', "<img src=x onerror=document.title='bad'>", " line\nbreak"]


def cutouts(count: int, side: int = 24) -> list[Cutout]:
    y, x = np.mgrid[:side, :side] - side / 2
    blob = 60 * np.exp(-(x**2 + y**2) / 18)[:, :, None] * [0.5, 1.0, 1.5]
    noise = np.random.default_rng(0).normal(0, 1, (side, side, 3))
    return [Cutout((blob + np.roll(noise, k, 0)).astype(np.float32), 0.2) for k in range(count)]


def catalogue(count: int) -> Table:
    ids = [*ODD, *(f"J{k:04d}" for k in range(len(ODD), count))]
    return Table({"id": ids[:count], "redshift": np.linspace(0.2, 0.8, count)})


def written(folder: Path, count: int = 6) -> Path:
    """Returns a report of candidates of falling score."""
    probability = np.linspace(0.9, 0.1, count)
    predictions = scored(
        count, probability=probability, logit=np.log(9) * np.linspace(1, -1, count)
    )
    return write_report(
        folder,
        best=candidate_table(catalogue(count), predictions),
        scored=Scored({"ensemble": probability}),
        cutouts=cutouts(count),
        bands=BANDS,
        impostors=IMPOSTORS,
        run={"scored": count, "config": {"data": "survey"}},
    )


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, tmp_path: Path, monkeypatch) -> Iterator:
    """A page of six candidates, in a browser of its own that fails on any error and request."""
    monkeypatch.setattr(page, "draw", lambda _: {})
    yield from _opened(browser, written(tmp_path))


def _opened(browser, path: Path) -> Iterator:
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    tab.on("request", lambda asked: wrong.append(asked.url) if asked.url[:4] == "http" else None)
    tab.goto(path.as_uri())
    yield tab
    context.close()
    assert wrong == []


def press(tab, keys: str) -> None:
    for key in keys.split():
        tab.keyboard.press(key)


def exported(tab) -> tuple[str, dict[tuple[str, str], dict[str, str]]]:
    """Returns the CSV that the page exports, and its rows by id and grader."""
    with tab.expect_download() as waited:
        tab.click("#export")
    with open(waited.value.path(), newline="", encoding="utf-8") as file:
        text = file.read()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return text, {(row["id"], row["grader"]): row for row in rows}


def grades(tab) -> list[str]:
    return tab.eval_on_selector_all(".card", "cards => cards.map(card => card.dataset.grade)")


def imported(tab, path: Path, text: str) -> str:
    path.write_text(text, newline="")
    tab.set_input_files("#files", path)
    tab.wait_for_function("name => find('toast').textContent.startsWith(name)", arg=path.name)
    return tab.inner_text("#toast")


def test_grades_given_by_keys_survive_a_reload_and_are_what_is_exported(opened, tmp_path) -> None:
    opened.fill("#grader", "Ann")
    press(opened, "Tab")
    press(opened, "a b 2 x")
    assert grades(opened) == ["A", "B", "X", "X", "", ""]
    press(opened, "u c")  # instead of the x
    press(opened, "m")
    opened.keyboard.type('not\n"sure"')  # of the fifth
    press(opened, "Escape")
    opened.reload()
    assert grades(opened) == ["A", "B", "X", "C", "", ""]
    assert opened.inner_text("#progress span") == "4 of 6"
    assert opened.input_value("#notes") == 'not\n"sure"'
    text, rows = exported(opened)
    assert text.splitlines()[0] == "id,ra,dec,grade,class,grader,time,seconds,notes"
    given = {id_: (row["grade"], row["class"], row["notes"]) for (id_, _), row in rows.items()}
    assert given == {
        ODD[0]: ("A", "", ""),
        ODD[1]: ("B", "", ""),
        ODD[2]: ("X", "spiral <b>", ""),
        "J0003": ("C", "", ""),
        "J0004": ("", "", 'not\n"sure"'),
    }
    assert {grader for _, grader in rows} == {"Ann"}
    row = rows[ODD[0], "Ann"]
    assert row["time"].endswith("Z") and float(row["seconds"]) >= 0 and float(row["ra"]) >= 0
    (tmp_path / "grades.csv").write_text(text, newline="")
    labels = read_labels(tmp_path / "grades.csv")
    assert dict(zip(labels["id"], labels["label"], strict=True)) == {
        ODD[0]: 1, ODD[1]: 1, ODD[2]: 0, "J0003": 0, "J0004": -1
    }  # fmt: skip
    assert opened.title() == "Lens candidates"


def test_grades_of_others_are_merged_and_the_later_of_two_counts(opened, tmp_path) -> None:
    press(opened, "a b")
    mine, _ = exported(opened)
    head = "id,ra,dec,grade,class,grader,time,seconds,notes\r\n"
    of_ben = head + "J0003,,,B,,Ben,2026-01-02T00:00:00Z,2,\r\nelsewhere,,,A,,Ben,2026,,\r\n"
    assert "1 taken, 1 of other candidates" in imported(opened, tmp_path / "ben.csv", of_ben)
    older = head + "J0003,,,X,,Ben,2026-01-01T00:00:00Z,2,\r\n"
    assert "0 taken, 1 known" in imported(opened, tmp_path / "old.csv", older)
    later = head + 'J0003,,,C,ring,Ben,2026-01-03T00:00:00Z,2,"a\r\nb"\r\n'
    assert "1 taken" in imported(opened, tmp_path / "new.csv", later)
    assert "0 taken, 2 known" in imported(opened, tmp_path / "mine.csv", mine)
    for wrong in ("id,label\r\n1,1\r\n", head + "J0003,,,D,,Ben,2027,,\r\n", head + '"J0003,'):
        assert "is not taken" in imported(opened, tmp_path / "wrong.csv", wrong)
    _, rows = exported(opened)
    assert {key: row["grade"] for key, row in rows.items()} == {
        (ODD[0], ""): "A", (ODD[1], ""): "B", ("J0003", "Ben"): "C"
    }  # fmt: skip
    assert rows["J0003", "Ben"]["notes"] == "a\r\nb"
    assert grades(opened) == ["A", "B", "", "", "", ""]
    opened.fill("#grader", "Ann")  # what was given before is hers
    press(opened, "Tab")
    assert grades(opened) == ["A", "B", "", "", "", ""]
    assert (ODD[0], "Ann") in exported(opened)[1]
    opened.fill("#grader", "Ben")
    press(opened, "Tab")
    assert grades(opened) == ["", "", "", "C", "", ""]


def test_blind_mode_hides_scores_and_their_order(opened) -> None:
    def order() -> list[str]:
        return opened.eval_on_selector_all(".card", "cards => cards.map(c => c.dataset.number)")

    assert "0.900" in opened.inner_text("#work") and "resnet18.0" in opened.inner_text("#score")
    assert order() == list("012345")
    press(opened, "h")
    opened.wait_for_function("() => find('blind').checked")
    seen = opened.inner_text("#work") + " ".join(
        opened.eval_on_selector_all(".card", "cards => cards.map(card => card.title)")
    )
    assert not any(score in seen for score in ("0.900", "0.740", "0.100", "resnet18", "logit"))
    assert "redshift" in seen
    shuffled = order()
    assert shuffled != list("012345") and sorted(shuffled) == list("012345")
    opened.reload()
    assert order() == shuffled
    opened.fill("#seed", "7")
    press(opened, "Tab")
    assert order() != shuffled and sorted(order()) == list("012345")


def test_filters_orders_and_what_is_next(opened) -> None:
    press(opened, "a ArrowRight b Home n")
    assert opened.inner_text("#name b").startswith("<img")  # the second is not graded
    opened.select_option("#which", "A or B")
    assert grades(opened) == ["A", "B"]
    press(opened, "c")  # stays until the list is made anew
    assert len(grades(opened)) == 2
    opened.select_option("#which", "all")
    opened.select_option("#order", "grade")
    assert grades(opened)[:3] in (["A", "C", ""], ["B", "C", ""])
    opened.fill("#find", "j000")
    assert len(grades(opened)) == 3
    opened.fill("#find", "")
    opened.fill("#lowest", "0.7")
    press(opened, "Tab")
    assert len(grades(opened)) == 2
    opened.select_option("#measure", "disagreement")
    kept = opened.evaluate("list.map(k => DATA.candidates[k].disagreement >= 0.7)")
    expected = opened.evaluate("DATA.candidates.filter(c => c.disagreement >= 0.7).length")
    assert all(kept) and len(kept) == expected < 6
    opened.select_option("#measure", "score")
    opened.fill("#lowest", "0.95")
    press(opened, "Tab")
    assert opened.is_visible("#nothing")
    press(opened, "a x n u ArrowRight Enter s Escape")  # of no candidate


def test_clicks_mark_and_the_rest_of_a_mosaic_is_given_x_and_taken_back(opened) -> None:
    opened.click(".card >> nth=2")
    assert opened.get_attribute(".card >> nth=2", "aria-selected") == "true"
    assert set(grades(opened)) == {""}
    opened.select_option("#brush", "B")
    for place in (1, 3, 1):
        opened.click(f".card >> nth={place}")
    assert grades(opened) == ["", "", "", "B", "", ""]
    press(opened, "Shift+X")
    assert grades(opened) == ["X", "X", "X", "B", "X", "X"]
    press(opened, "u u")
    assert grades(opened) == ["", "B", "", "B", "", ""]
    press(opened, "Backspace")
    assert grades(opened) == ["", "", "", "B", "", ""]


def test_the_single_view_shows_bands_stretches_and_the_scale(opened) -> None:
    press(opened, "Enter")
    for strip, names in (("stretches", ["Lupton", "asinh", "sqrt", "linear"]), ("bands", BANDS)):
        opened.wait_for_function(
            "([strip, n]) => find(strip).querySelectorAll('canvas[data-drawn]').length === n",
            arg=[strip, len(names)],
        )
        assert opened.locator(f"#{strip} span").all_inner_texts() == list(names)
    assert opened.inner_text("#bar span") == "1″"
    assert not opened.is_visible("#mosaic")
    links = opened.eval_on_selector_all("#links a", "links => links.map(link => link.href)")
    assert [link.split("/")[2] for link in links] == [
        "www.legacysurvey.org", "sky.esa.int", "aladin.cds.unistra.fr"
    ]  # fmt: skip
    # The colours are those of the mosaic, but for the steps, which show in the noise of the sky.
    pixels = opened.evaluate(
        "() => { const c = find('large').firstChild;"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }"
    )
    drawn = np.array(pixels).reshape(24, 24, 4)[:, :, :3]
    expected = colour(cutouts(1)[0].image, BANDS).astype(int)
    bright = expected.max(axis=2) > 80
    assert np.abs(drawn - expected)[bright].max() <= 6 and np.abs(drawn - expected).mean() < 2


def test_of_many_candidates_only_those_in_view_are_drawn(browser, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(page, "draw", lambda _: {})
    for tab in _opened(browser, written(tmp_path, 2000)):
        of_cards = (
            "[...document.querySelectorAll('.card')].map(c => 'drawn' in c.firstChild.dataset)"
        )
        tab.wait_for_function(f"() => {of_cards}.filter(Boolean).length >= 70 && !drawing")
        drawn = tab.evaluate(f"() => {of_cards}")
        assert len(drawn) == 100 and all(drawn[:70]) and not any(drawn[90:])
        assert tab.evaluate("() => inMemory.size") <= 100
        press(tab, "PageDown PageDown x")
        assert tab.inner_text("#page") == "3 of 20"
        assert tab.evaluate("() => DATA.candidates[list[place]].id") == "J0201"
        for _ in range(17):
            press(tab, "PageDown")
        press(tab, "End")
        tab.wait_for_function(f"() => {of_cards}.at(-1)")
        assert tab.evaluate("() => inMemory.size") <= 400


def test_an_inspection_is_blind_and_knows_no_scores(browser, tmp_path) -> None:
    table = catalogue(6)[["id"]]
    path, _ = write_inspection(tmp_path, table, [*cutouts(5), None], BANDS, IMPOSTORS, "survey")
    for tab in _opened(browser, path):
        assert not tab.is_visible("#blind") and tab.locator("#run").count() == 0
        assert "score" not in tab.locator("#order").inner_text()
        press(tab, "a 1 x")
        _, rows = exported(tab)
        assert sorted(row["grade"] for row in rows.values()) == ["A", "X", "X"]


def test_a_page_with_controls_shows_names_alone(browser, tmp_path) -> None:
    """Where a candidate lies would tell it from a control, of which the sky there has no arc."""
    source = Cutouts(np.stack([c.image for c in cutouts(6)]), BANDS, 0.2).source()
    named = {f"{k:010x}": Shown(source[k], k, truth) for k, truth in enumerate(["", "lens"] * 3)}
    path = tmp_path / "grading.html"
    controls.write_page(path, named, BANDS, "survey", IMPOSTORS)
    for tab in _opened(browser, path):
        assert not tab.is_visible("#blind") and tab.locator("#run").count() == 0
        press(tab, "Enter a b")
        assert tab.inner_text("#facts") == tab.inner_text("#links") == ""
        _, rows = exported(tab)
        assert {id_ for id_, _ in rows} <= set(named)
        assert all((row["ra"], row["dec"]) == ("", "") for row in rows.values())
