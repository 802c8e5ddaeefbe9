"""What the columns of the ranked catalogue mean, for its files, the report and the documentation.

Units and UCDs (the IVOA's words for quantities) are empty where there is none: FITS and the IVOA
have no word for log-odds, nor for nats.
"""

from typing import NamedTuple


class Meaning(NamedTuple):
    """Unit, UCD and description of a column."""

    unit: str
    ucd: str
    description: str


COLUMNS = {
    "rank": Meaning("", "stat.rank", "place in the list, 1 is the best"),
    "id": Meaning("", "meta.id;meta.main", "identifier of the cutout"),
    "ra": Meaning("deg", "pos.eq.ra;meta.main", "right ascension, where known"),
    "dec": Meaning("deg", "pos.eq.dec;meta.main", "declination, where known"),
    "probability": Meaning("", "stat.probability", "fused score of all members, from 0 to 1"),
    "logit": Meaning("", "", "the same as log-odds, ln(p / (1 - p))"),
    "logit_std": Meaning("", "stat.stdev", "spread of log-odds over members and dropout"),
    "total_entropy": Meaning("", "", "uncertainty whether it is a lens, in nats"),
    "aleatoric_entropy": Meaning("", "", "the part that members agree on, in nats"),
    "mutual_information": Meaning("", "", "the part on which they disagree, in nats"),
    "flag": Meaning("", "meta.code.qual", "what is missing in the cutout, empty where nothing is"),
}
OF_MEMBERS = Meaning("", "stat.probability", "score of one member alone, from 0 to 1")
CARRIED = {
    "path": Meaning("", "meta.ref;meta.file", "file of the cutout, and its place in it"),
    "label": Meaning("", "meta.code.class", "1 a lens, 0 none, -1 not known"),
}
