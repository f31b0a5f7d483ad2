"""Checks which rooms import which, and other rules of the architecture."""

import ast
import re
from pathlib import Path

import pytest

import dreamfusion_jax

NAME = "dreamfusion_jax"
PACKAGE = Path(dreamfusion_jax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TOP = "commands"  # the room of what stands at the package's top level
# A room's options depend on nothing else in it, so that config/ can collect them.
OPTIONS = "options"
# Rooms of plain functions: arrays and explicit values in, arrays out.
PURE = ("nerf", "diffusion", "distillation", "rendering", "mesh")
HOST = ("config", "runs", "training", "toybox", "evaluation", "viewer", "webui", TOP)
# Finding, reading and writing weights is what these are for.
READ_FILES = "diffusion/loading/"
MAX_LINES = 400
MAX_COMMANDS = 13


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if path.stem == OPTIONS:
        return OPTIONS
    return parts[0] if len(parts) > 1 else TOP


def imports(path: Path) -> set[str]:
    """Every module, and every name in a module, that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_known(path: Path) -> set[str]:
    """The other rooms that a module imports from."""
    known = set()
    for imported in imports(path):
        parts = imported.split(".")
        if parts[0] == NAME and OPTIONS in parts[2:-1]:
            known.add(OPTIONS)
        elif parts[0] == NAME and len(parts) > 1:
            known.add(parts[1] if (PACKAGE / parts[1]).is_dir() else TOP)
    return known - {room(path)}


def graph() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for path in MODULES:
        rooms.setdefault(room(path), set()).update(rooms_known(path))
    # The version and the errors, which the package's own __init__ offers, are no room.
    return {here: known - {TOP} for here, known in rooms.items()}


def test_rooms_form_no_circle():
    rooms, done = graph(), set()
    while rooms:
        free = {here for here, known in rooms.items() if known <= done}
        assert free, f"a circle among {rooms}"
        done |= free
        rooms = {here: known for here, known in rooms.items() if here not in free}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_doors(path):
    here, known, imported = room(path), rooms_known(path), imports(path)
    if here == "runtime":
        assert not known
    if here == OPTIONS:
        assert known <= {"runtime"}
    if here in PURE:
        assert not known & set(HOST), known
        top = {module.split(".")[0] for module in imported}
        assert not top & {"absl", "logging"}
        if not name(path).startswith(READ_FILES):
            assert not top & {"os", "pathlib", "json"}
    if here == "nerf":
        assert not known & {"diffusion", "distillation", "mesh", "rendering"}
    if here == "diffusion":
        assert not known & {"nerf", "distillation"}
    if here in ("training", "runs", "config"):
        assert "toybox" not in known
    assert not {module.split(".")[0] for module in imported} & {"torch", "diffusers"}


def test_pure_rooms_name_no_flag_in_their_errors():
    """Libraries name an argument or a file; help texts of options may name each other's flags."""
    for path in MODULES:
        if room(path) not in PURE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                text = ast.unparse(node)
                assert not re.search(r"--[a-z]", text), f"{name(path)}: {text}"


def test_modules_are_of_a_readable_length_and_commands_few():
    lengths = {name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {n: length for n, length in lengths.items() if length > MAX_LINES}
    assert len([n for n in lengths if "/" not in n]) <= MAX_COMMANDS


def test_the_step_is_the_only_place_that_knows_of_pmap():
    users = [name(path) for path in MODULES if "jax.pmap(" in path.read_text()]
    assert [user for user in users if not user.startswith("toybox/")] == ["training/step.py"]
