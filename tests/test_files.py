"""Files and folders that are replaced while processes are killed: old or new ones are there."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lensjax.errors import LensjaxError
from lensjax.files import draft_of, replacing, replacing_folder, standing_folders


class Killed(BaseException):
    pass


def save(folder: Path, text: str) -> None:
    with replacing_folder(folder) as draft:
        (draft / "first").write_text(text)
        (draft / "second").write_text(text)


def content(parent: Path) -> dict[str, set[str]]:
    return {
        name: {file.read_text() for file in folder.iterdir()}
        for name, folder in standing_folders(parent).items()
    }


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("old", [True, False], ids=["replaced", "new"])
def test_a_process_killed_anywhere_leaves_the_old_folder_or_the_new_one(
    tmp_path, monkeypatch, step, old
):
    """Killed before rename number `step`: nothing is cleaned up afterwards either."""
    if old:
        save(tmp_path / "0", "old")
    renames = itertools.count()

    def rename_or_end(source: Path, target: Path) -> None:
        if next(renames) == step:
            raise Killed
        os.rename(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(os, "replace", rename_or_end)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        save(tmp_path / "0", "new")
    assert content(tmp_path) in ({"0": {"new"}}, {"0": {"old"}} if old else {})
    save(tmp_path / "0", "newest")
    assert content(tmp_path) == {"0": {"newest"}}
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


KILLED = """
import os, sys
from pathlib import Path
from lensjax.files import replacing_folder
with replacing_folder(Path(sys.argv[1])) as draft:
    (draft / "first").write_text("half")
    os._exit(9)
"""


def test_drafts_of_processes_that_are_no_more_are_no_folders_and_are_cleared_away(tmp_path):
    save(tmp_path / "0", "old")
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "0"], check=False)
    assert ended.returncode == 9 and len(list(tmp_path.iterdir())) == 2
    assert content(tmp_path) == {"0": {"old"}}
    save(tmp_path / "1", "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_the_draft_of_a_process_that_is_there_is_left_alone(tmp_path):
    with replacing_folder(tmp_path / "0") as draft:
        theirs = draft.with_suffix(f".{os.getppid()}")
        theirs.mkdir()
    save(tmp_path / "1", "other")
    assert theirs.is_dir() and list(standing_folders(tmp_path)) == ["0", "1"]


def test_a_folder_that_could_not_be_filled_leaves_the_old_one_and_no_draft(tmp_path):
    save(tmp_path / "0", "old")
    with (
        pytest.raises(LensjaxError, match="no room left"),
        replacing_folder(tmp_path / "0") as draft,
    ):
        (draft / "first").write_text("half")
        raise OSError(28, "No space left on device")
    assert content(tmp_path) == {"0": {"old"}}
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o007, 0o770)])
def test_others_may_read_a_folder_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save(tmp_path / "0", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "0").stat().st_mode & 0o777 == mode


def test_where_there_is_no_folder_none_stands(tmp_path):
    (tmp_path / "file").write_text("")
    assert standing_folders(tmp_path / "none") == standing_folders(tmp_path / "file") == {}


def test_drafts_of_a_file_go_where_their_process_has_gone(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / "mosaic.png"
    others = [draft_of(path, os.getppid()), draft_of(path, "mine"), draft_of(path, "")]
    others += [tmp_path / "mosaic.png.1"]
    left = [draft_of(path, ended.pid), draft_of(tmp_path / "own.png", ended.pid)]
    for file in (*left, *others):
        file.write_text("half")
    with replacing(path) as file:
        file.write(b"whole")
    assert set(tmp_path.iterdir()) == {path, *others}
    assert path.read_text() == "whole"
