"""Writes the job files that run a command on a cluster or in a cloud."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("launch")
