"""The figures that the data allow are drawn, and hold what they say."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from lensjax import intervals, metrics, tail
from lensjax.report import Scored, figures, write_figures
from lensjax.report.figures import as_svg, draw
from lensjax.results import FIGURES, OUTPUTS

ALL = [
    *("roc", "precision_recall", "purity", "reliability", "scores", "uncertainty", "promise"),
]


PURITY = np.ma.array([0.9, 0.0, 0.8, 0.5], mask=[False, True, False, False])


def scored(size: int = 300, labels: bool = True) -> Scored:
    rng = np.random.default_rng(0)
    truth = np.arange(size) % 5 == 0
    logit = rng.normal(3.0 * truth - 2, 1.5)
    noisy = logit + rng.normal(0, 1, size)
    scores = 1 / (1 + np.exp(-logit))
    curve = tail.shown(tail.curve(scores[truth], scores[~truth]))
    return Scored(
        {"ensemble": scores, "a$b $\\frac": 1 / (1 + np.exp(-noisy))},
        truth.astype(float) if labels else None,
        logit,
        rng.random(size),
        tail.at_cuts(curve, 0.01) if labels else None,
        PURITY if labels else None,
    )


@pytest.fixture(scope="module")
def drawn() -> dict:
    return draw(scored())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (scored(labels=False), ["scores", "uncertainty"]),
        (Scored({"ensemble": np.array([0.5])}), ["scores"]),
        (Scored({"ensemble": np.array([0.5, np.nan])}, np.array([1, 0])), ["scores"]),
        (Scored({"ensemble": np.array([])}), []),
        (Scored({"ensemble": np.full(3, np.nan)}, np.array([1, 0, 1])), []),
    ],
)
def test_what_the_data_do_not_allow_is_left_out(data: Scored, expected: list[str]) -> None:
    assert list(draw(data)) == expected


def test_roc_shows_the_curve_and_its_area(drawn: dict) -> None:
    data = scored()
    (axes,) = drawn["roc"].axes
    line = next(line for line in axes.lines if str(line.get_label()).startswith("ensemble"))
    false_rate, true_rate = metrics.roc_curve(data.fused, data.classes)
    np.testing.assert_allclose(line.get_ydata(), true_rate)
    np.testing.assert_allclose(line.get_xdata()[false_rate > 0], false_rate[false_rate > 0])
    area = metrics.values(data.fused, data.classes)["auroc"]
    assert str(line.get_label()).endswith(f"{area:.4f}")
    assert axes.get_xscale() == "log"


def test_purity_and_completeness_stand_at_their_cuts(drawn: dict) -> None:
    data = scored()
    (axes,) = drawn["purity"].axes
    completeness, purity = axes.lines
    cut, lens = completeness.get_xdata()[40], data.classes == 1
    found, false = ((data.fused[rows] >= cut).mean() for rows in (lens, ~lens))
    assert completeness.get_ydata()[40] == found
    assert purity.get_ydata()[40] == pytest.approx(0.01 * found / (0.01 * found + 0.99 * false))
    assert axes.get_title() == "one lens in 100 objects"
    without = Scored(data.probabilities, data.labels)
    assert list(draw(without)) == ["roc", "precision_recall", "reliability", "scores"]


def test_the_promise_is_of_the_rows_that_it_is_about(drawn: dict) -> None:
    (axes,) = drawn["promise"].axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.9], [2, 0.8], [3, 0.5]]


def test_files_are_pictures_on_white(drawn: dict, tmp_path: Path, monkeypatch) -> None:
    assert list(drawn) == ALL == list(FIGURES)
    monkeypatch.setattr(figures, "draw", lambda _: {"scores": drawn["scores"]})
    (tmp_path / "roc.png").write_text("of former data")
    png, pdf = write_figures(tmp_path, scored())
    assert {"scores.png", "scores.pdf"} == {path.name for path in tmp_path.iterdir()}
    assert {png.name, pdf.name, "roc.png"} <= set(OUTPUTS)
    assert pdf.read_bytes().startswith(b"%PDF")
    with Image.open(png) as image:
        assert image.width > 600 and image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_svg_stands_alone_in_a_page_and_names_are_no_formulas(drawn: dict) -> None:
    for name, figure in drawn.items():
        svg = as_svg(figure)
        assert "http" not in svg and "currentColor" in svg and "<style" not in svg
        assert ("a$b $\\frac" in svg) == (name in ("roc", "precision_recall"))
        element = ElementTree.fromstring(svg.replace("xlink:href", "href"))
        assert element.tag == "svg" and "viewBox" in element.attrib
        assert not {"width", "height"} & set(element.attrib)


def band(axes) -> np.ndarray:
    (found,) = (c for c in axes.collections if c.get_label() == "95 % interval")
    return found.get_paths()[0].vertices


def test_curves_of_the_ensemble_have_their_intervals(drawn: dict) -> None:
    """Exact binomial ones: of the lenses found, and of the lenses among those that are listed."""
    data = scored()
    lenses = int((data.classes == 1).sum())
    (axes,) = drawn["roc"].axes
    false_rate, true_rate = metrics.roc_curve(data.fused, data.classes)
    k = int(np.flatnonzero(false_rate > 0)[3])
    at = band(axes)[np.isclose(band(axes)[:, 0], false_rate[k]), 1]
    expected = stats.binomtest(int(round(true_rate[k] * lenses)), lenses).proportion_ci(0.95)
    assert np.isclose(at, expected.low).any() and np.isclose(at, expected.high).any()

    (axes,) = drawn["precision_recall"].axes
    truth = data.classes[np.argsort(-data.fused)] == 1
    listed = 1 + int(np.flatnonzero(truth)[10])  # the list that ends with the eleventh lens
    at = band(axes)[np.isclose(band(axes)[:, 0], 11 / lenses), 1]
    expected = stats.binomtest(11, listed).proportion_ci(0.95)
    assert np.isclose(at, expected.low).any() and np.isclose(at, expected.high).any()

    count, _, share = metrics.reliability(data.fused, data.classes)
    (container,) = drawn["reliability"].axes[0].containers
    low, high = intervals.share_interval((share * count)[count > 0], count[count > 0])
    bars = np.array(container.lines[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose(bars, np.stack([low, high], axis=1), atol=1e-12)


def test_large_tables_are_drawn_with_few_points() -> None:
    drawn = draw(scored(20_000))
    assert len(band(drawn["roc"].axes[0])) < 3000
    assert len(drawn["uncertainty"].axes[0].collections[0].get_offsets()) == figures.POINTS
    assert len(as_svg(drawn["roc"])) + len(as_svg(drawn["precision_recall"])) < 1_000_000
