"""The demonstration: a small simulated sky, kept in the cache folder, to be scored with members.

It is scored when scripts/infer.py is given no data. The sky is of the kind that the members in the
repository were trained on, and drawn with another seed than theirs.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from lensjax import __version__, runtime
from lensjax.simulation import SimulateConfig, simulate_survey

SKY = SimulateConfig(survey="ground", count=600, test_fraction=1.0, seed=2026)
SMOKE_SKY = dataclasses.replace(SKY, count=64)


def held_back(smoke: bool) -> Path:
    """Returns the file of simulated cutouts that no member has seen, drawn where it is not there:
    those of the demonstration, or few of them for a `smoke` run."""
    sky = SMOKE_SKY if smoke else SKY
    # Another version or other settings have a folder of their own.
    said = json.dumps(dataclasses.asdict(sky), sort_keys=True) + __version__
    folder = runtime.cache_folder() / f"sky-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    cutouts = folder / "test.npz"
    print(f"Demonstration: scores {sky.count} simulated cutouts, {cutouts}", flush=True)
    if not (folder / "truth.csv").exists():
        simulate_survey(dataclasses.replace(sky, output=folder))
    return cutouts
