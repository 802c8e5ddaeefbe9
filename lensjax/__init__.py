"""Strong gravitational lens finding with compiled ensembles in JAX."""

__version__ = "0.1.0"
