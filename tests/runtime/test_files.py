"""Files and folders are published whole or not at all, and what is wrong is one sentence."""

import os
import resource

import pytest

from imprint_jax.errors import InputError
from imprint_jax.runtime.files import atomic_file, atomic_folder, remove_unfinished


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path) as file:
        file.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), names(tmp_path)) == ("new", ["a.txt"])
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write_text("half")
        raise KeyboardInterrupt
    assert (path.read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_names_as_long_as_names_can_be(tmp_path):
    longest = "x" * 255
    with atomic_file(tmp_path / longest) as file:
        file.write_text("")
    with atomic_folder(tmp_path / ("y" * 255)):
        pass
    assert names(tmp_path) == [longest, "y" * 255]
    for publish in (atomic_file, atomic_folder):
        with (
            pytest.raises(InputError, match=r"Cannot write .*: File name too long"),
            publish(tmp_path / ("x" * 256)),
        ):
            pass
    assert names(tmp_path) == [longest, "y" * 255]


def test_a_folder_appears_when_the_block_has_ended(tmp_path):
    path = tmp_path / "above" / "folder"
    with atomic_folder(path) as folder:
        (folder / "a").touch()
        assert not path.parent.exists()
    assert names(path) == ["a"]
    with pytest.raises(InputError, match="exists already"), atomic_folder(path):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(path, replace=True) as folder:
        (folder / "b").touch()
        raise ZeroDivisionError
    assert (names(path), names(path.parent)) == (["a"], ["folder"])
    with atomic_folder(path, replace=True) as folder:
        (folder / "b").touch()
    assert (names(path), names(path.parent)) == (["b"], ["folder"])


def test_a_folder_of_which_a_part_was_built_before(tmp_path):
    path, building = tmp_path / "folder", tmp_path / ".building"
    with pytest.raises(ZeroDivisionError), atomic_folder(path, building=building) as folder:
        (folder / "a").touch()
        raise ZeroDivisionError
    with atomic_folder(path, building=building) as folder:
        assert names(folder) == ["a"]
    assert (names(tmp_path), names(path)) == (["folder"], ["a"])


def test_what_the_system_refuses_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path / "missing" / "a", "No such file or directory"),
        (tmp_path / "file" / "a", "Not a directory"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(InputError, match=rf"Cannot write {path}: {said}\."):
            with atomic_file(path) as file:
                file.write_text("")
    with pytest.raises(InputError, match=r"Cannot write .*: Not a directory."):
        with atomic_folder(tmp_path / "file" / "a"):
            pass
    assert names(tmp_path) == ["file"]


def test_a_full_disk(tmp_path):
    """A limit on the size of files stands in for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputError, match=r"Cannot write .*a: File too large."):
            with atomic_file(tmp_path / "a") as file:
                file.write_bytes(bytes(2000))
        with pytest.raises(InputError, match=r"Cannot write .*b: File too large."):
            with atomic_folder(tmp_path / "b") as folder:
                (folder / "c").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_an_error_of_another_file_is_not_called_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError, match="input"), atomic_file(tmp_path / "a"):
        open(tmp_path / "input")
    with pytest.raises(FileNotFoundError, match="input"), atomic_folder(tmp_path / "b"):
        os.stat(tmp_path / "input")


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / ".1.tmp").mkdir()
    (tmp_path / ".2.tmp").touch()
    (tmp_path / "kept").touch()
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "missing")
    assert names(tmp_path) == ["kept"]
