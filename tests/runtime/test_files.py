import os

import pytest

from imprint_jax.runtime.files import write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_text(path, "before")
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "after")
    assert path.read_text(encoding="utf-8") == "ä\n"
