"""What is brought into the page cache is what a reader will read next."""

import io
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lensjax.benchmark import page_cache, worker
from lensjax.benchmark.contract import Loaded, Outputs, Program


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_pieces_are_the_bytes_of_files_that_follow_each_other(sizes, start, length):
    bytes_of_all = [(file, place) for file, size in enumerate(sizes) for place in range(size)]
    whole = len(bytes_of_all)
    wanted = [bytes_of_all[place % whole] for place in range(start, start + min(length, whole))]
    found = [
        (piece.file, place)
        for piece in page_cache.pieces(sizes, start, start + length)
        for place in range(piece.start, piece.stop)
    ]
    assert found == wanted


def test_each_call_brings_the_batches_after_the_last_and_what_is_read_ahead(monkeypatch, tmp_path):
    for name in "abcd":
        (tmp_path / name).write_bytes(bytes(100))
    monkeypatch.setattr(page_cache, "BATCHES_AHEAD", 1)
    read = []

    def note(path, piece, room):
        read.append((path.name, piece.start, piece.stop))

    monkeypatch.setattr(page_cache, "_read", note)
    bring = page_cache.ahead(str(tmp_path), items=8, batch=1)
    bring(1)
    assert read == [("a", 0, 100)]
    read.clear()
    bring(6)
    assert read == [("a", 50, 100), ("b", 0, 100), ("c", 0, 100), ("d", 0, 100)]
    read.clear()
    bring(1)
    assert read == [("d", 50, 100), ("a", 0, 50)]


def test_what_a_turn_takes_is_fetched_before_its_clock_starts(monkeypatch):
    said = []

    def run(count):
        said.append(f"run {count}")
        return Outputs(np.zeros((1, 1)))

    program = Program(run, 1.0, ready=lambda count: said.append(f"ready {count}"))
    module = SimpleNamespace(entry=lambda: Loaded(lambda: program, "no device"))
    monkeypatch.setattr(worker.importlib, "import_module", lambda name: module)
    lines = '{"entry": "module:entry", "settings": {}}', '{"prepare": {}}', '{"run": 5}'
    worker.serve(io.StringIO("\n".join(lines)), io.StringIO())
    assert said == ["ready 2", "run 1", "run 1", "ready 6", "run 1", "run 5"]
