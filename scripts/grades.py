"""Merges the grades of several people into labels and weights."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("grades")
