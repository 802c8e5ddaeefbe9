"""Compares predictions with labels: metrics with intervals, and figures."""

from lensjax.commands import evaluate
from lensjax.config import run_script

if __name__ == "__main__":
    run_script(evaluate.main)
