"""Files that are there whole or not at all, whenever the process ends."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text under another name, then gives it its own; replaces what was there."""
    # In the same folder, since a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
