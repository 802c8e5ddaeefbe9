"""Measures which lenses an ensemble finds, with arcs injected into cutouts."""

import sys
from pathlib import Path

# Python has a module of this name, which it looks for in this folder first when it runs any of the
# scripts here: they get Python's own.
HERE = Path(__file__).resolve().parent
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != HERE]

if __name__ == "__main__":
    from lensjax.launch import run_script

    run_script("select")
else:
    del sys.modules[__name__]
    import select  # noqa: F401
