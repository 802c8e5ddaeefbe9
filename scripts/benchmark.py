"""Times lensjax and PyTorch side by side, and compares their outputs."""

import sys
from pathlib import Path

from lensjax import launch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks import command

    sys.exit(launch.run(command.main, sys.argv[1:]))
