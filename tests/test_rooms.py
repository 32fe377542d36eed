"""The order of rooms: a sample's way through the package reads straight down."""

import ast
import itertools
from pathlib import Path

import imprint_jax

PACKAGE = Path(imprint_jax.__path__[0])

# Each row may import from the rows above it and from itself, never from a row below. The root is
# what every room shares.
ORDER = (
    {"errors"},
    {"config", "geometry", "images", "runtime"},
    {"models", "rendering"},
    {"data"},
    {"diffusion"},
    {"weights"},
    {"training"},
    {"composing", "planning"},
    {"evaluation"},
    {"ui"},
    {"cli"},
)
# Worker processes of the data loader and the renderer import these; JAX would cost each of them
# seconds and hundreds of megabytes. What `data/batch.py` places on devices is the exception.
WITHOUT_JAX = ("data", "rendering")
PLACES_ON_DEVICES = PACKAGE / "data" / "batch.py"


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def room(module: str) -> str | None:
    """The room, or the module of the root, that a dotted name leads into; None: not ours."""
    package, *rest = module.split(".")
    return rest[0] if package == "imprint_jax" and rest else None


def files(*rooms: str) -> list[Path]:
    return sorted(itertools.chain.from_iterable((PACKAGE / name).rglob("*.py") for name in rooms))


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    unknown = rooms - set().union(*ORDER)
    assert not unknown, f"give {unknown} a row in ORDER"


def test_imports_go_one_way():
    row_of = {name: row for row, names in enumerate(ORDER) for name in names}
    upward = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = room(".".join(("imprint_jax", *path.relative_to(PACKAGE).with_suffix("").parts)))
        if here not in row_of:  # the package's own __init__ and __main__
            continue
        for module in imports(path):
            there = room(module)
            if there in row_of and row_of[there] > row_of[here]:
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not upward, "\n".join(upward)


def test_data_and_rendering_do_without_jax():
    heavy = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in files(*WITHOUT_JAX)
        if path != PLACES_ON_DEVICES
        for module in imports(path)
        if module.split(".")[0] in ("jax", "flax", "optax", "orbax") or room(module) == "models"
    ]
    assert not heavy, "\n".join(heavy)
