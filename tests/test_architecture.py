"""The rules of the house, read off the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import those before it. `report` reads files only: of the others it knows `core`.
ORDER = [
    "core",
    "noise",
    "data",
    "convert",
    "models",
    "pretrain",
    "features",
    "tune",
    "analysis",
    "report",
    "study",
]
SOURCES = sorted((ROOT / "nml_jax").rglob("*.py"))
FORBIDDEN = {
    r"jax\.pmap": "use jax.jit with shardings",
    r"import pjit": "an alias of jax.jit",
    r"with mesh:": "deprecated",
    r"config\.get\(": "a default lives in one place",
    r"allow_pickle=True": "files from outside may run code",
    r"\bimport tensorflow\b(?!_datasets)": "TensorFlow is no dependency",
}


def imports(path: Path) -> set[str]:
    """The rooms of nml_jax that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {m.split(".")[1] for m in modules if m.startswith("nml_jax.")}
    return found & set(ORDER)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "nml_jax").parts
    return parts[0] if len(parts) > 1 else ""


def test_rooms_are_those_of_the_order():
    assert {room(p) for p in SOURCES} - {""} == set(ORDER)


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    allowed = set(ORDER[: ORDER.index(room(path)) + 1])
    if room(path) == "report":
        allowed = {"core", "report"}
    assert imports(path) <= allowed


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_forbidden_idioms(pattern):
    hits = [str(p) for p in SOURCES if re.search(pattern, p.read_text())]
    assert not hits, f"{pattern} ({FORBIDDEN[pattern]}): {hits}"


def test_no_utils():
    assert not [p for p in SOURCES if "util" in p.stem]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_readable_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 350
