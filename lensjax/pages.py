"""The pictures and pages of a run, of cutouts that are read once more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from lensjax import asking, controls, inspection
from lensjax.data.planes import Cutout
from lensjax.data.source import Source
from lensjax.files import gathering
from lensjax.inference_config import InferenceConfig
from lensjax.members import Members
from lensjax.metrics import Metrics
from lensjax.predictions import Predictions


def draw(
    config: InferenceConfig,
    source: Source,
    best: Table,
    predictions: Predictions,
    record: Mapping[str, Any],
    found: Mapping[str, Metrics],
    promised: Mapping[str, np.ndarray],
) -> None:
    """Writes mosaic.png, report.html and the pages to grade that are asked for; the `best` cutouts
    are read once more, and black where they cannot be."""
    from lensjax import report

    ranking = predictions.ranking()
    cutouts = [report.look(source, row) for row in ranking[: config.top]]
    pictures = [report.picture(cutout, source.bands) for cutout in cutouts]
    rejected, purity = ~predictions.readable, promised.get("purity_at_least")
    scored = report.Scored(
        {name: values[~rejected] for name, values in predictions.probabilities().items()},
        labels=source.table["label"][~rejected] if "label" in source.table.colnames else None,
        logit=predictions.scores.logit[~rejected],
        logit_std=predictions.scores.logit_std[~rejected],
        purity_at_least=purity if purity is None else purity[ranking],
    )
    rejects = zip(source.table["id"][rejected], predictions.reason[rejected], strict=True)
    with gathering() as attempt:
        mosaic = config.folder / "mosaic.png"
        attempt("mosaic.png", report.write_mosaic, mosaic, pictures, best, record["scored"])
        attempt(
            "report.html",
            report.write_report,
            config.folder,
            best=best,
            scored=scored,
            cutouts=cutouts,
            bands=source.bands,
            impostors=inspection.kinds_of(config.impostors),
            run=record,
            rejects=rejects,
            metrics=found,
        )
        if config.controls is not None and not config.ask:
            candidates = dict(zip(ranking.tolist(), cutouts, strict=False))
            given = config, controls.PAGE, source, ranking, candidates, config.seed
            attempt(controls.PAGE, _plant, *given)
        if "calibration" in promised and "label" not in source.table.colnames:
            drawn = promised["calibration"][ranking]
            attempt("inspection.html", _write_inspection, config, source, ranking, drawn)


def ask(
    config: InferenceConfig, source: Source, members: Members, predictions: Predictions
) -> None:
    """Writes ask.html and ask.csv: the cutouts that the options ask for. The page knows no scores.

    Controls are made of cutouts that nobody has graded: graders would know them again. Where more
    have been graded others are drawn, and the page has other names.
    """
    rows = asking.rows_to_ask(config, source, members, predictions)
    if config.controls is None:
        inspection.write_blind(
            config.folder, source, rows, Path(asking.PAGE).stem, config.impostors, config.data
        )
        return
    from lensjax import report

    ranking, graded = predictions.ranking(), asking.graded(config, source)
    candidates = {row: report.look(source, row) for row in rows.tolist()}
    open_, seed = ranking[~graded[ranking]], config.seed + int(graded.sum())
    report.write_list((config.folder / asking.PAGE).with_suffix(".csv"), source.table[rows])
    _plant(config, asking.PAGE, source, open_, candidates, seed)


def _plant(
    config: InferenceConfig,
    page: str,
    source: Source,
    ranking: np.ndarray,
    candidates: Mapping[int, Cutout | None],
    seed: int,
) -> None:
    """Writes a page with controls, of rows of the ranking, among the candidates."""
    kinds, data = inspection.kinds_of(config.impostors), str(config.data)
    controls.write(config.folder / page, config, data, source, ranking, candidates, kinds, seed)


def _write_inspection(
    config: InferenceConfig, source: Source, ranking: np.ndarray, calibration: np.ndarray
) -> None:
    """Writes what is to be looked at before a list is certified."""
    from lensjax.trust import certificate

    inspection.write(
        config.folder,
        source,
        ranking,
        np.asarray(calibration),
        most=certificate.INSPECTED,
        seed=config.seed,
        impostors=config.impostors,
        data=config.data,
    )
