"""Makes ray-traced lenses and look-alikes: cutouts for training, or tiles of a survey."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("simulate")
