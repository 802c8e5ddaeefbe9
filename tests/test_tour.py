"""docs/tour.ipynb runs from its first cell to its last."""

from pathlib import Path

import nbclient
import nbformat
import pytest

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
# A sky and a training that are as small as all cells still find what they show.
SMALLER = {"    600, survey": "    160, survey", "epochs=8": "epochs=1"}


@pytest.mark.slow
def test_the_tour_runs_and_still_prints_what_it_shows():
    shown, run = (nbformat.read(TOUR, as_version=4) for _ in range(2))
    for full, small in SMALLER.items():
        (cell,) = (cell for cell in run.cells if full in cell.source)
        cell.source = cell.source.replace(full, small)
    place = {"metadata": {"path": str(TOUR.parent)}}
    nbclient.NotebookClient(run, timeout=600, resources=place).execute()
    for before, after in zip(shown.cells, run.cells, strict=True):
        assert kinds(before) == kinds(after), before.source


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    """Returns what a cell puts out, in kind; warnings and progress are no matter."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    return [output.output_type for output in outputs]


def test_its_pictures_are_small():
    assert TOUR.stat().st_size < 400_000
