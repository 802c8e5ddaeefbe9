"""Scores cutouts with an ensemble and writes the ranked catalogue and its pictures."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("infer")
