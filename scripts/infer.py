"""Scores cutouts with an ensemble and writes the ranked catalogue and its pictures."""

from lensjax.commands import infer
from lensjax.config import run_script

if __name__ == "__main__":
    run_script(infer.main)
