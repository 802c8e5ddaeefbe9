"""The pictures of a run: the mosaic, the figures, the page.

Imports matplotlib: import it where something is about to be drawn, not at start-up.
"""

from lensjax.report.figures import Scored, write_figures
from lensjax.report.inspection import write_inspection, write_list
from lensjax.report.page import write_report
from lensjax.report.pictures import colour, look, picture, write_mosaic

__all__ = [
    "Scored",
    "colour",
    "look",
    "picture",
    "write_figures",
    "write_inspection",
    "write_list",
    "write_mosaic",
    "write_report",
]
