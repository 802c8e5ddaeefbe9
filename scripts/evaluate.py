"""Compares predictions with labels: metrics with intervals, and figures."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("evaluate")
