"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from clipchoir_steps import atomic


def test_a_file_is_replaced_when_the_block_ends_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("old")
    path.chmod(0o600)
    with atomic.replacing(path, "w", encoding="utf-8") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("old")
    with pytest.raises(error), atomic.replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "classes.txt", "Küste\r\nMeer\n")
    assert (tmp_path / "classes.txt").read_bytes() == "Küste\r\nMeer\n".encode()
