"""Reads the imports, and holds who may know whom."""

import ast
from pathlib import Path

import pytest

import dreamfusion_jax

PACKAGE = Path(dreamfusion_jax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# The maths: plain arrays and explicit values in, arrays out.
PURE = ("nerf", "mesh", "diffusion", "distillation.py", "prompts.py")
# Finding, reading and writing weights is what these are for.
READ_FILES = ("diffusion/hub.py", "diffusion/weights.py", "diffusion/prior.py")


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> set[str]:
    """Every module, and every name in a module, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_in(path: Path, rooms: tuple[str, ...]) -> bool:
    return any(name(path) == room or name(path).startswith(room + "/") for room in rooms)


def assert_never_imports(path: Path, *forbidden: str) -> None:
    for imported in imports(path):
        for module in forbidden:
            assert imported != module and not imported.startswith(module + "."), (
                f"{name(path)} imports {imported}"
            )


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_doors(path):
    package = "dreamfusion_jax"
    if is_in(path, ("nerf", "mesh")):
        assert_never_imports(path, f"{package}.diffusion", f"{package}.distillation")
    if is_in(path, ("nerf",)):
        assert_never_imports(path, f"{package}.mesh")
    if is_in(path, ("diffusion",)):
        assert_never_imports(path, f"{package}.nerf", f"{package}.distillation")
    if is_in(path, PURE):
        assert_never_imports(path, "absl", "logging", f"{package}.config", f"{package}.training")
    if is_in(path, PURE) and not is_in(path, READ_FILES):
        assert_never_imports(path, "os", "pathlib", "json")
    assert_never_imports(path, "torch", "diffusers")


def test_the_step_is_the_only_place_that_knows_of_pmap():
    users = [name(path) for path in MODULES if "jax.pmap(" in path.read_text()]
    assert [user for user in users if not user.startswith("toybox/")] == ["training/step.py"]
