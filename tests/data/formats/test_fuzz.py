"""Whatever the bytes, a cutout or a reason: thousands of damaged files, in another process."""

import json
import subprocess
import sys

import pytest

from tests.data.formats import fuzz


@pytest.mark.slow
def test_damaged_files_never_end_a_run_nor_are_lost():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.data.formats.fuzz"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    outcomes = json.loads(ended.stdout.splitlines()[-1])
    assert outcomes.keys() == {*fuzz.files(), "shards", "zarr", "hostile"}
    cases = {k: found.get("opened", 0) + found.get("refused", 0) for k, found in outcomes.items()}
    assert sum(cases.values()) >= 2000
    assert all(count >= fuzz.MUTATIONS for kind, count in cases.items() if kind != "hostile")
    # Damage was done, and not to all.
    assert sum(found.get("read", 0) for found in outcomes.values()) > 300
    assert sum(found.get("rejected", 0) for found in outcomes.values()) > 300
