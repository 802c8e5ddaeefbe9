"""lensjax for notebooks: simulate, train, load an ensemble, score, evaluate.

Whatever cannot be done as asked raises `lensjax.errors.UsageError`, whose message is one line that
says what to do; in it `--option` stands for the argument of that name.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from astropy.table import Table
from numpy.typing import ArrayLike

from lensjax import inference, metrics, results
from lensjax.cutouts import Cutouts
from lensjax.data import pipeline
from lensjax.data.catalog import DataOptions
from lensjax.data.noise_free import refuse_noise_free
from lensjax.data.on_device import InputSpec
from lensjax.data.preprocess import Fit
from lensjax.data.source import Source
from lensjax.ensemble import scoring, sharding
from lensjax.ensemble.checkpoint import MemberInfo
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.step import Weights
from lensjax.errors import UsageError
from lensjax.inference import Members, ScoringOptions
from lensjax.ledger import Ledger
from lensjax.metrics import Metrics
from lensjax.outcome import said_of
from lensjax.predictions import Predictions
from lensjax.trust import run as trust


class Scored(NamedTuple):
    """What an ensemble says of cutouts. Every cutout is in one of the two tables.

    `candidates` has a row for each that was scored, the best first: `rank`, `id`, `ra`, `dec`
    (degrees), `probability` of a lens, `logit`, `logit_std` (of dropout samples and members),
    `total_entropy`, `aleatoric_entropy` and `mutual_information` (nats), `flag` (what is amiss),
    `<member>_probability`; where they can be computed `log_likelihood_ratio`, `beyond_calibration`,
    `probability_low`, `probability_high`, `disagreement`, `member_disagreement`,
    `outlier_distance` and `outlier_p_value`, as `lensjax infer` writes them; and the columns that
    the cutouts came with. The `description` of a column says what it means. Cutouts are outliers
    among the members' validation data, or among each other where members know no pixels of those.

    `rejects` has `id` and `reason` of each that could not be read.
    """

    candidates: Table
    rejects: Table


class LensFinder:
    """An ensemble that is ready to score cutouts; see `load_ensemble`.

    Weights are read at the first call of `score`, and a step is compiled once for each size of
    cutouts.
    """

    def __init__(self, members: Members, options: ScoringOptions) -> None:
        self._members, self._options = members, options
        self._mesh = sharding.mesh_of(jax.local_devices(), options.member_shards)
        self._steps: dict[InputSpec, CompiledStep] = {}
        self._weights: Weights | None = None

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """Returns what is known of each member, by the name that its columns have."""
        return self._members.infos

    def __repr__(self) -> str:
        return f"LensFinder({', '.join(self.members)}; bands {', '.join(self._members.bands)})"

    def score(
        self,
        data: Cutouts | str | Path,
        *,
        bands: str | None = None,
        pixel_scale: float | None = None,
        fit: Fit = "auto",
        catalogue: str | None = None,
    ) -> Scored:
        """Returns the scores of cutouts in memory, or of those at a path.

        A path is a folder of images, a catalogue with a `path` column, a stack (`.npy`, `.npz`,
        HDF5, Zarr, FITS), shards, or a template with `{band}`. Of files that do not say it, `bands`
        says what they hold, as "g,r,i", and `pixel_scale` the arcsec per pixel. `fit` is how
        cutouts of another size than the members' are brought to it. With a `catalogue` of
        positions the path is one of tiles, out of which the cutouts are cut.

        Raises UsageError where there are no cutouts, or none in the bands that the members see.
        """
        options = DataOptions(bands=bands, pixel_scale=pixel_scale, fit=fit, catalogue=catalogue)
        options = options.for_members(self._members.preprocessings)
        if isinstance(data, Cutouts):
            source = data.source(self._members.bands)
            pipeline.check_fields(source, self._members.preprocessings, fit)
            refuse_noise_free(source.table)
        else:
            source = inference.open_cutouts(str(data), self._members, options)
        predictions = self._predict(source, fit)
        promised = trust.likelihood(predictions, self._members.ensemble.validated_on, None)
        said = said_of(predictions, self._members, promised)
        unread = ~predictions.readable
        rejects = {"id": source.table["id"][unread], "reason": predictions.reason[unread]}
        candidates = results.candidate_table(source.table, predictions, trust=said.columns)
        return Scored(candidates, Table(rejects))

    def _predict(self, source: Source, fit: Fit) -> Predictions:
        """Returns the predictions for all cutouts of a source."""
        input_spec = scoring.input_spec(source, self._members.preprocessings, fit)
        if input_spec not in self._steps:
            self._steps[input_spec] = inference.compile_step(
                self._members, input_spec, len(source), self._options, self._mesh
            )
        step = self._steps[input_spec]
        if self._weights is None:
            self._weights = inference.load_weights(self._members, step, self._options)
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder), {}, source.rows)
            scoring.score(step, self._weights, source, ledger, fit, self._options.workers)
            return Predictions.of_columns(step.ensemble.names, ledger.columns())


def load_ensemble(folder: str | Path, ensemble: str | None = None, **options: Any) -> LensFinder:
    """Returns the ensemble of the members that a folder holds.

    `ensemble` chooses among them: "resnet18:2,vit_b16" is two of the one architecture and all of
    the other, "all" is every member; by default those of architectures score that have a share in
    the stacked score. `options` are those of `inference.ScoringOptions`, as
    `mc_samples=1` for no dropout, `fusion="mean_prob"` or `precision="bfloat16"`.

    Raises UsageError where there are no such members, LensjaxError where one is damaged.
    """
    return LensFinder(inference.find_members(Path(folder), ensemble), ScoringOptions(**options))


def simulate(
    count: int, *, survey: str = "decam", size: int | None = None, seed: int = 0, **options: Any
) -> tuple[Cutouts, Cutouts]:
    """Returns ray-traced lenses and look-alikes as a survey ("decam", "hsc", "euclid", "ground")
    sees them.

    First those to train on, then a fifth to test with, so that no galaxy is in both. `size` is in
    pixels across. `options` are those of `lensjax simulate`, as `lens_fraction=0.5`,
    `test_fraction=0.2`, `sources="hubble"` for real galaxies behind the lenses, or `arc_snr=100`
    for arcs that are easily seen. The columns hold the truth: `label`, `kind`, `group` and the
    parameters of each lens.

    Raises UsageError for what cannot be simulated.
    """
    from lensjax.simulation import SimulateConfig, as_cutouts, simulated

    config = SimulateConfig(count=count, survey=survey, size=size, seed=seed, **options)
    seen_by, sky, test = simulated(config)
    cutouts = as_cutouts(seen_by, sky)
    return cutouts[~test], cutouts[test]


def train_members(
    data: Cutouts | str | Path,
    folder: str | Path,
    *,
    arch: str = "resnet18",
    members: int = 1,
    **options: Any,
) -> list[MemberInfo]:
    """Trains members on labelled cutouts, and returns what is known of each, with its metrics.

    They are written to `folder/<arch>/<seed>/`, where `load_ensemble(folder)` finds them; those
    that are there already are kept. `options` are those of `lensjax train`, as `epochs=2.0`,
    `batch_size=32`, `scales="64,112"` or `validation_fraction=0.2`.

    Raises UsageError for data without labels and options that do not fit.
    """
    from lensjax.training import train
    from lensjax.training_config import TrainConfig

    with tempfile.TemporaryDirectory() as scratch:
        path = data.save(Path(scratch) / "cutouts.npz") if isinstance(data, Cutouts) else data
        config = TrainConfig(
            data=str(path), output=Path(folder), arch=arch, members=members, **options
        )
        return [member.info for member in train(config)]


def evaluate(candidates: Table, labels: ArrayLike | None = None) -> dict[str, Metrics]:
    """Returns the metrics, with 95 % intervals, of the ensemble and of each member of `candidates`.

    `labels` (n,) are 1 for a lens, 0 for none and -1 where that is not known; by default those of
    the column `label`. Raises UsageError where there are none.
    """
    if labels is None:
        if "label" not in candidates.colnames:
            raise UsageError("the candidates have no column `label`: give labels")
        labels = candidates["label"]
    ending = "_probability"
    members = [name.removesuffix(ending) for name in candidates.colnames if name.endswith(ending)]
    scores = {"ensemble": candidates["probability"]}
    scores |= {name: candidates[name + ending] for name in members}
    return metrics.evaluate_all(scores, labels)
