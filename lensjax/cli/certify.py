"""scripts/certify.py: says how many false positives the list of a run holds at most, wherever it is
cut."""

from collections.abc import Sequence

from lensjax import config
from lensjax.certification import CertifyConfig, certify, plan


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints what is certain."""
    about = " ".join(__doc__.split(": ", 1)[1].split())
    options = config.parse(CertifyConfig, argv, description=about)
    print(plan(options) if options.plan else certify(options))
