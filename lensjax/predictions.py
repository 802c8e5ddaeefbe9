"""The scores of cutouts, from the compiled step to predictions.npz."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax.data.formats.tables import filled
from lensjax.data.pixel_statistics import STATISTICS
from lensjax.errors import UsageError
from lensjax.files import replacing

PIECE_ROWS = 100_000
THRESHOLD = 0.5  # probability from which `ensemble_preds` says lens

Array = NDArray[Any]


class Scores(NamedTuple):
    """What an ensemble says of n cutouts, on a device or on the host: (n,) float32, and
    (member, n) for those of the members.

    `pixels` (statistic, n) is no score: it holds the STATISTICS of `pixel_statistics`.
    """

    probability: Any
    logit: Any
    logit_std: Any
    total_entropy: Any
    aleatoric_entropy: Any
    mutual_information: Any
    member_logits: Any
    member_probs: Any
    pixels: Any = None


@dataclass(frozen=True)
class Predictions:
    """All that a run knows of n cutouts, in input order: the one form of scores on the host.

    `members` names the rows of the two (member, n) arrays of `scores`; everything but the pixels'
    statistics is (n,).
    """

    members: tuple[str, ...]
    scores: Scores
    """NaN where a cutout is not readable."""
    readable: Array
    """Whether it has a score."""
    reason: Array
    """Why it has none; "" where it has one."""
    flag: Array
    """What is amiss with a cutout that is scored all the same, mostly ""."""
    ra: Array
    dec: Array
    """Degrees, NaN where not known."""
    masked: Array
    """How many of its values were masked and have been filled."""
    action: Array
    """What was done to fit it to the members' input size."""
    field: Array
    """Its field of view over a member's, NaN where not known."""

    def columns(self) -> dict[str, Array]:
        """Returns the arrays by name, cutouts on the last axis: what a ledger keeps."""
        others = [field.name for field in dataclasses.fields(self)[2:]]
        return self.scores._asdict() | {name: getattr(self, name) for name in others}

    @classmethod
    def of_columns(cls, members: tuple[str, ...], columns: Mapping[str, Array]) -> "Predictions":
        """Returns the predictions whose `columns()` these are."""
        scores = Scores(*(columns[name] for name in Scores._fields))
        others = {name: columns[name] for name in columns if name not in Scores._fields}
        return cls(members, scores, **others)

    @property
    def complete(self) -> Array:
        """Returns which cutouts all members have scored, (n,) bool."""
        return np.isfinite(self.scores.member_logits).all(axis=0)

    def ranking(self) -> Array:
        """Returns the rows of the readable cutouts, best first: those that all members have scored,
        then those that a cascade has dropped.

        Ties in probability go by logit (float32 probabilities saturate before logits do), then by
        input order.
        """
        scores = self.scores
        return ranking(scores.probability, scores.logit, scores.member_logits)

    def probabilities(self) -> dict[str, Array]:
        """Returns the probabilities (n,) of the `ensemble` and of each member that has scored all
        that are readable, by name."""
        of_members = zip(self.members, self.scores.member_probs, strict=True)
        of_all = {n: p for n, p in of_members if not np.isnan(p[self.readable]).any()}
        return {"ensemble": self.scores.probability, **of_all}


def ranking(probability: Array, logit: Array, member_logits: Array) -> Array:
    """Returns the rows (n,) that have a score, best first, as `Predictions.ranking` does, from
    probabilities and logits (n,) and those of the members (member, n)."""
    rows = np.flatnonzero(np.isfinite(logit))
    dropped = ~np.isfinite(member_logits[:, rows]).all(axis=0)
    return rows[np.lexsort((-logit[rows], -probability[rows], dropped))]


def unscored(members: tuple[str, ...], ra: float, dec: float, reason: str) -> Predictions:
    """Returns the row of a cutout without a score, and why it has none."""
    text = np.array([""])
    of_ensemble = np.full((6, 1), np.nan, np.float32)
    of_members = np.full((2, len(members), 1), np.nan, np.float32)
    pixels = np.full((len(STATISTICS), 1), np.nan, np.float32)
    return Predictions(
        members=members,
        scores=Scores(*of_ensemble, *of_members)._replace(pixels=pixels),
        readable=np.array([False]),
        reason=np.array([reason]),
        flag=text,
        ra=np.array([ra]),
        dec=np.array([dec]),
        masked=np.array([0], np.int32),
        action=text,
        field=np.array([np.nan], np.float32),
    )


def write_predictions(folder: Path, catalogue: Table, predictions: Predictions) -> None:
    """Writes predictions.npz: (n,) arrays in input order, readable without pickle.

    `id` and, where the catalogue has it, `path`; `ensemble_logits`, `ensemble_probs`,
    `ensemble_preds` (int8: 1 from a probability of 0.5 on, 0 below and where a cascade has dropped
    it, -1 where a cutout was not readable), `<member>_logits`, `<member>_probs` (NaN where a member
    has not seen it), `flag`; and the names of the `members`.
    """
    scores = predictions.scores
    listed = (scores.probability >= THRESHOLD) & predictions.complete
    preds = np.where(predictions.readable, listed, -1)
    arrays = {
        "ensemble_logits": scores.logit,
        "ensemble_probs": scores.probability,
        "ensemble_preds": preds.astype(np.int8),
        "flag": predictions.flag,
        "members": np.array(predictions.members, np.str_),
    }
    for index, name in enumerate(predictions.members):
        arrays[f"{name}_logits"] = scores.member_logits[index]
        arrays[f"{name}_probs"] = scores.member_probs[index]
    arrays |= {
        name: filled(catalogue[name]) for name in ("id", "path") if name in catalogue.colnames
    }
    with replacing(folder / "predictions.npz") as file:
        _save(file, arrays)


def _save(file: IO[bytes], arrays: Mapping[str, Array]) -> None:
    """Writes arrays (n,) as `np.savez` does, but piece by piece: as NumPy's, texts take a multiple
    of the memory of all else."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, values in arrays.items():
            texts = values.dtype == object
            dtype = np.array(list(set(values)), np.str_).dtype if texts else values.dtype
            form = {"descr": dtype.str, "fortran_order": False, "shape": values.shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, form)
                for first in range(0, len(values), PIECE_ROWS):
                    entry.write(values[first : first + PIECE_ROWS].astype(dtype).tobytes())


def read_probabilities(folder: str | os.PathLike[str]) -> tuple[Table, dict[str, Array]]:
    """Returns what the predictions.npz of a run's folder (or the file itself) holds.

    First the columns `id` and, where the run knew them, `path`; then the probabilities (n,) of the
    `ensemble` and of each member, NaN where unreadable. Raises UsageError where it is none.
    """
    path = Path(folder)
    path = path / "predictions.npz" if path.is_dir() else path
    arrays = read_npz(path)
    members = arrays["members"].tolist() if "members" in arrays else []
    scores = ["ensemble", *members]
    missing = {"id", *(f"{name}_probs" for name in scores)} - arrays.keys()
    if missing:
        raise UsageError(f"{path} lacks {' and '.join(sorted(missing))}: give the folder of a run")
    probabilities = {name: arrays[f"{name}_probs"] for name in scores}
    for name, values in probabilities.items():
        if values.dtype.kind not in "fiu" or values.shape != arrays["id"].shape or values.ndim != 1:
            raise UsageError(
                f"{path}: the probabilities of {name} are not one number for each of its "
                f"{arrays['id'].size} ids: give the folder of a run"
            )
    keys = {name: arrays[name] for name in ("id", "path") if name in arrays}
    return Table(keys), probabilities


def read_npz(path: Path) -> dict[str, Array]:
    """Returns the arrays of an NPZ file. Raises UsageError where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # Arbitrary bytes: NumPy, zipfile and zlib have errors of their own.
    except Exception as error:
        reason = getattr(error, "strerror", None) or "it is no plain NPZ file, or not a whole one"
        raise UsageError(f"cannot read {path}: {reason}") from error
