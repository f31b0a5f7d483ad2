"""`--help` of every command: each flag once, none of its library's, and quiet into `head`."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from absl import flags

from dreamfusion_jax.__main__ import COMMANDS, summary
from dreamfusion_jax.config import help
from dreamfusion_jax.config.flags import SECTIONS, define_flags

SETTINGS = [s.name for section in SECTIONS.values() for s in dataclasses.fields(section)]
FORMER_NAMES = {
    s.metadata["former_name"] for section in SECTIONS.values() for s in dataclasses.fields(section)
}
# Every command in a copy of one process, as each defines the same flags.
EVERY_HELP = """
import contextlib, io, json, os, sys
from absl import flags
from dreamfusion_jax import __main__ as commands
import dreamfusion_jax.runs.job
for name, request in zip(commands.COMMANDS, 4 * ["--help", "-h", "--helpfull", "--helpshort"]):
    if not os.fork():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                commands.main([name, "--no_such_flag", request])
            except SystemExit as error:
                code = error.code
        modules = flags.FLAGS.flags_by_module_dict()
        own = [m for m in modules if m.split(".")[0] not in ("absl", "orbax")]
        names = [flag.name for module in own for flag in modules[module]]
        print(json.dumps([name, code, names, printed.getvalue()]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def every_help():
    command = [sys.executable, "-W", "ignore", "-c", EVERY_HELP]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: rest for name, *rest in map(json.loads, result.stdout.splitlines())}


def test_every_flag_of_every_command_is_listed_once(every_help):
    assert list(every_help) == list(COMMANDS)
    for name, (code, names, text) in every_help.items():
        assert code == 0 and text.startswith(summary(name)), name
        listed = re.findall(r"^  --(\w+)=", text, re.MULTILINE)
        assert sorted(listed) == sorted({*names} - FORMER_NAMES), name
        assert text.splitlines()[-1].startswith("absl's own flags"), name
        assert max(map(len, text.splitlines())) <= 100, name
    assert {*SETTINGS, "preset", "prompts_file"} <= set(every_help["main"][1])


def test_a_flag_has_its_default_choices_and_the_papers_value():
    values = flags.FlagValues()
    define_flags(flag_values=values)
    text = help.help_text("Trains.", values)
    assert "\n  --field=mip (mip|sdf|grid|hash|image): mip: " in text
    assert "\n  --distance=2.3,3.2: " in text and "\n  --perp_neg=false: " in text
    assert "\n  --prompt='': " in text and "(paper: 128)" in text
    assert set(help.TITLES) == set(SECTIONS)


@pytest.mark.parametrize(
    "arguments, wanted",
    [([], False), (["--steps=3", "-h"], True), (["--", "--help"], False), (["--prompt=-h"], False)],
    ids=str,
)
def test_help_is_asked_for_before_two_dashes_only(arguments, wanted):
    assert help.is_requested(arguments) == wanted


def test_a_reader_that_leaves_early_sees_no_traceback():
    script = "from dreamfusion_jax.config import help; help.print_text(100_000 * 'text ')"
    command = f'"{sys.executable}" -W ignore -c "{script}" | head -c 3; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "tex", "")
