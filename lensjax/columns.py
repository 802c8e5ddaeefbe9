"""What each column of the candidates means, the same in FITS, Parquet and VOTable."""

from typing import NamedTuple

from astropy.table import Column


class Meaning(NamedTuple):
    """What a column means: unit, empty where there is none, as for log-odds and nats; UCD, the
    IVOA's word for a quantity (UCD1+ 1.5); and description."""

    unit: str
    ucd: str
    description: str


COLUMNS = {
    "rank": Meaning("", "stat.rank", "place in the list, 1 is the best"),
    "id": Meaning("", "meta.id;meta.main", "identifier of the cutout"),
    "ra": Meaning("deg", "pos.eq.ra;meta.main", "right ascension, where known"),
    "dec": Meaning("deg", "pos.eq.dec;meta.main", "declination, where known"),
    "probability": Meaning("", "stat.probability", "fused score of all members, from 0 to 1"),
    "logit": Meaning("", "stat.value", "the same as log-odds, ln(p / (1 - p))"),
    "logit_std": Meaning("", "stat.stdev", "spread of log-odds over members and dropout"),
    "total_entropy": Meaning("", "stat.value", "uncertainty whether it is a lens, in nats"),
    "aleatoric_entropy": Meaning("", "stat.value", "the part that members agree on, in nats"),
    "mutual_information": Meaning("", "stat.value", "the part on which they disagree, in nats"),
    "flag": Meaning("", "meta.code.qual", "what is missing in the cutout, empty where nothing is"),
    "_healpix_29": Meaning("", "pos.healpix", "HEALPix cell of order 29, nested"),
}
# What a run can say beyond the scores; each is there where it could be computed.
TRUST = {
    "probability_low": Meaning(
        "", "stat.probability;stat.min", "probability at the logit less its spread, logit_std"
    ),
    "probability_high": Meaning(
        "", "stat.probability;stat.max", "probability at the logit plus its spread, logit_std"
    ),
    "disagreement": Meaning(
        "", "stat.stdev", "spread of log-odds between architectures, each the mean of its members"
    ),
    "member_disagreement": Meaning("", "stat.stdev", "spread of log-odds between members"),
    "outlier_distance": Meaning(
        "", "stat.value", "how far its pixels are from those of the reference (Mahalanobis)"
    ),
    "outlier_p_value": Meaning(
        "",
        "stat.probability",
        "share of reference cutouts whose pixels are as unlike the rest: validation data, or the "
        "run itself where run.json says so",
    ),
    "log_likelihood_ratio": Meaning(
        "",
        "stat.likelihood",
        "what the cutout itself says: logit less the log-odds of the validation data",
    ),
    "beyond_calibration": Meaning(
        "",
        "meta.code",
        "the ratio is clipped: the validation data are too few to know a higher one",
    ),
    "survey_probability": Meaning(
        "", "stat.probability", "probability at the prevalence that --prevalence says"
    ),
    "known_lens": Meaning("", "meta.id.cross", "the nearest of the lenses in --known"),
    "known_separation": Meaning("arcsec", "pos.angDistance", "how far away that lens is"),
    "calibration": Meaning(
        "", "meta.code", "drawn to calibrate the list: the promises are about the others"
    ),
    "p_value": Meaning("", "stat.probability", "chance that a non-lens scores as high (conformal)"),
    "false_positives_at_most": Meaning(
        "",
        "meta.number",
        "most false positives of the list down to this row, at the confidence of the run",
    ),
    "purity_at_least": Meaning(
        "",
        "stat.value",
        "least share of lenses in the list down to this row, at the confidence of the run",
    ),
}
OF_MEMBERS = Meaning("", "stat.probability", "score of one member alone, from 0 to 1")
CARRIED = {
    "path": Meaning("", "meta.ref;meta.file", "file of the cutout, and its place in it"),
    "label": Meaning("", "meta.code.class", "1 a lens, 0 none, -1 not known"),
}
# Where objects lie in tiles.
IN_TILES = {
    "tile": Meaning("", "meta.id;obs.field", "tile that the cutout is from"),
    "edge_distance": Meaning("arcsec", "pos.angDistance", "how far the edge of the tile is away"),
}
# What --detect measures of the objects that it finds.
FOUND = {
    "ra": COLUMNS["ra"],
    "dec": COLUMNS["dec"],
    "mag": Meaning("mag", "phot.mag", "Kron magnitude"),
    "snr": Meaning("", "stat.snr", "signal-to-noise ratio of the flux in the Kron ellipse"),
    "half_light_radius": Meaning("arcsec", "phys.angSize", "half-light radius, not deconvolved"),
    "size_ratio": Meaning("", "stat.value", "half-light radius in units of that of the stars"),
    "colour": Meaning("mag", "phot.color", "colour"),
    "sep_flag": Meaning(
        "",
        "meta.code.qual",
        "flags of sep: 1 a blend, 2 or 16 cut off by the edge, 32 with masked pixels",
    ),
    "found_in": Meaning("", "meta.id;obs.field", "tile in which the object was found"),
}


def describe(column: Column, meaning: Meaning) -> None:
    """Gives a column its unit, UCD and description."""
    column.unit, column.description = meaning.unit or None, meaning.description
    if meaning.ucd:
        column.meta["ucd"] = meaning.ucd
