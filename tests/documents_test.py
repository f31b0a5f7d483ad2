"""The documents are right: commands parse, code fits the API, links and files exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import trimesh

import dreamfusion_jax
from dreamfusion_jax import api
from dreamfusion_jax.config import flags as configs

ROOT = Path(__file__).parent.parent
GUIDES = ("README.md", "experiments/README.md")
DOCUMENTS = (
    *GUIDES,
    "WORKSPACE.md",
    "tests/benchmarks/README.md",
    "dreamfusion_jax/toybox/weights/README.md",
)
MAX_LINE_LENGTH = 120
# Two commands that set up everything at once, to be copied as they are.
SETUP = "python3 -m venv .venv && "
MOST = {"README.md": (180, 1600), "WORKSPACE.md": (200, None)}  # lines, words
# Flags in the text that no program of ours defines: absl's, pytest's, SkyPilot's.
FOREIGN = {"help", "durations", "env"}

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MODULE = re.compile(r"python3? -m (dreamfusion_jax[\w.]*|tests[\w.]*)(.*)")
_FILE = re.compile(r"[\w./-]+\.(?:py|cfg|ipynb|js|css|sh|yaml)\b")

# Parses commands with the flags that each program defines as it starts, and reports what is wrong
# with them. A process for each program, since all define flags of the same names.
PARSER = """
import json, os, runpy, shlex, sys
from absl import flags
import dreamfusion_jax.api
from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs

def error_of(module, arguments):
    flags.FLAGS.unparse_flags()
    try:
        rest = configs.parse_flags([module, *(a for a in arguments if a != "--help")])
        if len(rest) > 1:
            return f"{rest[1]} is not a flag"
        if module == "dreamfusion_jax.main" and "--help" not in arguments:
            many = flags.FLAGS.prompts_file
            configs.config_from_flags(**({"prompt": "one of them"} if many else {}))
        if module == "dreamfusion_jax.evaluate":
            runs = flags.FlagValues()
            configs.define_flags(flag_values=runs)
            configs.parse_flags(["", *shlex.split(flags.FLAGS.run_flags)], runs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

for module, commands in json.load(sys.stdin).items():
    if not os.fork():
        def report(main):
            defined = flags.FLAGS.flags_by_module_dict()
            own = {f.name for m, fs in defined.items() if not m.startswith("absl") for f in fs}
            errors = [error_of(module, arguments) for arguments in commands]
            print(json.dumps([module, errors, sorted(own)]), flush=True)
        try:
            cli.run = report
            runpy.run_module(module, run_name="__main__")
        finally:
            os._exit(0)
    os.wait()
"""


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def fenced(document: str, language: str) -> list[str]:
    return [block for _, name, block in _FENCED.findall(text_of(document)) if name == language]


def prose(document: str) -> str:
    """The document without its blocks of code."""
    return _FENCED.sub("", text_of(document))


def inline_code(document: str) -> list[str]:
    return [" ".join(code.split()) for code in _INLINE.findall(prose(document))]


def commands(document: str) -> list[tuple[str, list[str]]]:
    """The programs that a document runs with `python -m`, each with its arguments."""
    lines = "".join(fenced(document, "bash")).replace("\\\n", " ").splitlines()
    lines += inline_code(document)
    result = []
    for module, rest in _MODULE.findall("\n".join(lines)):
        words = shlex.split(rest, comments=True)
        ends = [i for i, word in enumerate(words) if word in ("&&", ";", "|", ">")]
        result.append((module, words[: min(ends, default=len(words))]))
    return result


ALL_COMMANDS = [(document, *command) for document in DOCUMENTS for command in commands(document)]
PROGRAMS = [command for command in ALL_COMMANDS if command[1].startswith("dreamfusion_jax.")]
BENCHMARKS = sorted({module for _, module, _ in ALL_COMMANDS if module.startswith("tests.")})


@pytest.fixture(scope="module")
def parsed() -> dict[str, tuple[dict[str, str | None], set[str]]]:
    """program -> its commands, as one string each, with what is wrong with them; its flags."""
    commands_of: dict[str, list[list[str]]] = {}
    for _, module, arguments in PROGRAMS:
        commands_of.setdefault(module, []).append(arguments)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSER],
        input=json.dumps(commands_of),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    result = {}
    for module, errors, own in map(json.loads, done.stdout.splitlines()):
        whole = map(shlex.join, commands_of[module])
        result[module] = dict(zip(whole, errors, strict=True)), set(own)
    assert set(result) == set(commands_of), done.stderr
    return result


def label(command: tuple[str, str, list[str]]) -> str:
    document, module, arguments = command
    return f"{document}: {module.removeprefix('dreamfusion_jax.')} {shlex.join(arguments)}"


@pytest.mark.parametrize("command", PROGRAMS, ids=label)
def test_commands_parse_with_their_programs_own_flags(command, parsed):
    _, module, arguments = command
    assert parsed[module][0][shlex.join(arguments)] is None


def test_there_are_commands_of_every_program():
    folder = Path(dreamfusion_jax.__file__).parent
    programs = {p.stem for p in folder.glob("*.py") if "__main__" in p.read_text()} - {"__main__"}
    shown = {module.removeprefix("dreamfusion_jax.") for _, module, _ in PROGRAMS}
    assert shown >= programs >= {"main", "sample", "evaluate"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_in_the_text_exist(document, parsed):
    known = FOREIGN.union(*(own for _, own in parsed.values()))
    codes = [code for code in inline_code(document) if code.startswith("--")]
    named = {name for code in codes for name in re.findall(r"(?:^| )--(\w+)", code)}
    assert named - known == set()


@pytest.mark.parametrize("module", BENCHMARKS)
def test_benchmarks_exist(module):
    assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file()


def test_the_readmes_python_fits_the_api(monkeypatch):
    """Every call is checked against its signature; the quickstart notebook's test really runs."""
    (block,) = fenced("README.md", "python")
    asset = mock.create_autospec(api.Asset, instance=True)
    asset.mesh.return_value = mock.create_autospec(trimesh.Trimesh, instance=True)
    text_to_3d = mock.create_autospec(api.text_to_3d, return_value=asset)
    monkeypatch.setattr(dreamfusion_jax, "text_to_3d", text_to_3d)
    monkeypatch.setattr(dreamfusion_jax, "Asset", mock.create_autospec(api.Asset))
    text_to_images = mock.create_autospec(api.text_to_images)
    monkeypatch.setattr(dreamfusion_jax, "text_to_images", text_to_images)
    exec(compile(block, "README.md", "exec"), {})
    assert text_to_3d.called and asset.render.called and asset.mesh.called
    for (prompt,), settings in text_to_3d.call_args_list:
        preset = settings.pop("preset", "toybox")
        configs.config_from_settings(preset, {**settings, "prompt": prompt})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_compiles(document):
    for block in fenced(document, "python"):
        compile(block, document, "exec")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_short(document):
    long = [line for line in text_of(document).splitlines() if len(line) > MAX_LINE_LENGTH]
    assert [line for line in long if not line.startswith(SETUP)] == []


@pytest.mark.parametrize("document", MOST)
def test_documents_are_short(document):
    text, (lines, words) = text_of(document), MOST[document]
    assert len(text.splitlines()) <= lines
    assert words is None or len(text.split()) <= words


def heading_links(document: Path) -> set[str]:
    """What a heading is linked by, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_images_exist(document):
    links = [link for link in _LINK.findall(prose(document)) if "://" not in link]
    for link in links:
        path, _, heading = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        assert not heading or heading in heading_links(target), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_in_the_text_exist(document):
    folders = ("dreamfusion_jax", "experiments", "tests", ".ci")
    there = [f"/{p.relative_to(ROOT)}" for folder in folders for p in (ROOT / folder).rglob("*")]
    text = re.sub(r"https?://\S+", "", text_of(document))
    for name in set(_FILE.findall(text)):
        ending = "/" + re.sub(r"^(\.\.?/)+", "", name)
        assert any(path.endswith(ending) for path in there), name
