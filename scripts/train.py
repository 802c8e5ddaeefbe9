"""Trains members on labelled cutouts."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("train")
