"""Writes an ensemble as one file that JAX and NumPy alone can run."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("export")
