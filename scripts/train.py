"""Trains members on labelled cutouts."""

from lensjax.commands import train
from lensjax.config import run_script

if __name__ == "__main__":
    run_script(train.main)
