"""What is left of a run that was killed at a bad moment, and locks where they cannot be."""

from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from clipchoir.cli._resumable_output import ArrayFile, CannotResumeError, exclusive


def test_an_array_that_was_finished_but_not_renamed_takes_more_rows_however_often_it_is_interrupted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tiny.npy"
    for number in range(3):
        array = ArrayFile(path, 2)
        assert array.rows == number
        array.append([number, number])
        if number == 0:
            array.finish()
        array.close()
    array = ArrayFile(path, 2)
    array.finish()
    array.close()
    assert np.load(path).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_an_array_of_other_rows_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "tiny.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(CannotResumeError, match="not of embeddings of 2 numbers"):
        ArrayFile(tmp_path / "tiny.npy", 2)


def test_one_run_at_a_time_and_no_lock_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with exclusive(out, out), pytest.raises(CannotResumeError, match="another run is writing"), exclusive(out, out):
        pass
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_a_run_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(FileLock, "acquire", cannot)
    with exclusive(tmp_path / "out.jsonl", tmp_path):
        pass


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive(tmp_path / "typo" / "out.jsonl", tmp_path):
        pass
    assert not list(tmp_path.iterdir())
