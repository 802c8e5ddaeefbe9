"""Makes ray-traced lenses and look-alikes, split into training and test."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("simulate")
