"""Strong gravitational lens finding with compiled ensembles in JAX."""

from lensjax.host import use_fast_convolutions

__version__ = "0.1.0"

use_fast_convolutions()
