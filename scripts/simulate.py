"""Makes ray-traced lenses and look-alikes, split into training and test."""

from lensjax.commands import simulate
from lensjax.config import run_script

if __name__ == "__main__":
    run_script(simulate.main)
