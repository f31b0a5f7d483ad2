"""Every flag has bounds or choices; other values are refused in one sentence that names it."""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import math
import sys
from pathlib import Path

import hypothesis
import pytest
from absl import flags
from absl.flags import _helpers
from hypothesis import strategies as st

from dreamfusion_jax import main as program
from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.distillation import view_prompts
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.settings import is_whole_numbers
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training.optimizer import make_optimizer

SETTINGS = {
    setting.name: setting
    for section in configs.SECTIONS.values()
    for setting in dataclasses.fields(section)
}
NUMBERS = [s for s in SETTINGS.values() if type(s.default) in (int, float, tuple)]
# What may be any text: names of files and folders, and words for the prior.
FREE_TEXT = {
    *(
        "prompt",
        "negative_prompt",
        "prior",
        "revision",
        "variant",
        "lora",
        "embedding",
        "workdir",
        "init_from",
        "init_mesh",
        "compilation_cache",
        "coordinator",
        "wandb",
    ),
}
REPEATED = {"derandomize": True, "database": None, "deadline": None}


def parse(*arguments: str) -> configs.Config:
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    configs.parse_flags(["program", *arguments], values)
    return configs.config_from_flags(values)


def names(setting: dataclasses.Field) -> str:
    return setting.name


def test_every_flag_has_a_range_or_choices_or_is_text():
    for setting in SETTINGS.values():
        limits = setting.metadata
        if setting in NUMBERS:
            assert limits["minimum"] < limits["maximum"], setting.name
        elif isinstance(setting.default, str) and setting.name not in FREE_TEXT:
            assert len(limits["choices"]) > 1, setting.name
    assert FREE_TEXT == {
        s.name for s in SETTINGS.values() if type(s.default) is str and not s.metadata["choices"]
    }


def beyond(setting: dataclasses.Field, side: str) -> str:
    """The next value on the other side of a bound."""
    bound, sign = setting.metadata[side], {"minimum": -1, "maximum": 1}[side]
    if isinstance(setting.default, int) or is_whole_numbers(setting):
        return str(bound + sign)
    return repr(math.nextafter(bound, sign * math.inf))


@pytest.mark.parametrize("side", ["minimum", "maximum"])
@pytest.mark.parametrize("setting", NUMBERS, ids=names)
def test_a_number_just_beyond_its_bound_is_refused_by_name(setting, side):
    relation = {"minimum": "at least", "maximum": "at most"}[side]
    with pytest.raises(UserError, match=f"^--{setting.name} must be {relation} "):
        parse("--prompt=x", f"--{setting.name}={beyond(setting, side)}")


@pytest.mark.parametrize("setting", NUMBERS, ids=names)
def test_the_bounds_themselves_are_accepted(setting):
    section = next(s for s in configs.SECTIONS.values() if setting in dataclasses.fields(s))
    for bound in (setting.metadata["minimum"], setting.metadata["maximum"]):
        value = bound if is_whole_numbers(setting) else float(bound)
        value = (value,) * 2 if isinstance(setting.default, tuple) else bound
        configs.check_section(dataclasses.replace(section(), **{setting.name: value}))


@pytest.mark.parametrize("setting", NUMBERS, ids=names)
def test_what_is_not_a_number_is_refused_by_name(setting):
    for value in ("", "many", "nan", "inf", "-inf", "1e999", "9" * 400, "-0x" + "f" * 9000, "1,x"):
        with pytest.raises((UserError, flags.Error), match=f"--{setting.name}\\b"):
            parse("--prompt=x", f"--{setting.name}={value}")


@pytest.mark.parametrize(
    "setting", [s for s in SETTINGS.values() if s.metadata["choices"]], ids=names
)
def test_unknown_choices_are_refused_by_name(setting):
    for value in ("", "nothing", setting.default.upper(), setting.default + " "):
        with pytest.raises(flags.Error, match=f"--{setting.name}=.*should be one of"):
            parse("--prompt=x", f"--{setting.name}={value}")


@pytest.mark.parametrize("name", sorted(FREE_TEXT))
def test_text_that_cannot_be_written_is_refused(name):
    for value in ("a\0b", "\udcff", "a\ud83d"):
        with pytest.raises(UserError, match=f"^--{name} must"):
            parse("--prompt=x", f"--{name}={value}")


CONFLICTS = {
    ("--t_min=0.6",): ("--t_max_end", "--t_min"),
    ("--t_max_start=0.01",): ("--t_max_start", "--t_min"),
    ("--max_degree=3", "--min_degree=3"): ("--max_degree", "--min_degree"),
    ("--hash_finest=15",): ("--hash_finest", "--hash_coarsest"),
    ("--negative_views",): ("--negative_views", "--view_words"),
    ("--perp_neg", "--view_words=none"): ("--perp_neg", "--view_words"),
    ("--perp_neg", "--view_words=paper", "--field=image"): ("--perp_neg", "--view_words"),
    ("--variant=fp16",): ("--variant", "--prior"),
    ("--render_size=64,256",): ("--render_milestones", "--render_size"),
    ("--render_milestones=9",): ("--render_milestones", "--render_size"),
    ("--render_size=8,16,32", "--render_milestones=9,9"): ("--render_milestones", "--render_size"),
    ("--render_size=8,16", "--render_milestones=0"): ("--render_milestones", "--render_size"),
    ("--revision=main",): ("--revision", "--prior"),
    ("--preset=sd", "--prior=toybox"): ("--variant", "--prior"),
}


@pytest.mark.parametrize("arguments", CONFLICTS, ids=" ".join)
def test_flags_that_contradict_each_other_are_both_named(arguments):
    with pytest.raises(UserError) as raised:
        parse("--prompt=x", *arguments)
    assert all(name in str(raised.value) for name in CONFLICTS[arguments])


# Any command line: it works, or ends in one sentence.


def tame(setting: dataclasses.Field) -> st.SearchStrategy[str]:
    """Values that a flag accepts."""
    limits, default = setting.metadata, setting.default
    if limits["choices"]:
        return st.sampled_from(limits["choices"])
    if isinstance(default, bool):
        return st.sampled_from(("true", "false", "1", "0"))
    if isinstance(default, str):
        return st.sampled_from(("a red chair", "x", "\u6771\u4eac", "caf\u00e9/../..", "~"))
    if isinstance(default, int) or setting.name == "render_size":
        return st.integers(limits["minimum"], limits["maximum"]).map(str)
    if setting.name == "render_milestones":  # which several sizes need
        return st.just("0")
    number = st.floats(limits["minimum"], limits["maximum"])
    if isinstance(default, tuple):
        return st.tuples(number, number).map(sorted).map(lambda ends: f"{ends[0]!r},{ends[1]!r}")
    return number.map(repr)


ODD_VALUES = (
    *("", "nan", "-inf", "1e999", "9" * 400, "0x" + "f" * 9000, "1_0", "\u0663", "1,2", "2,1"),
    *("(1,2)", "1,2,3", "None", "true", "x" * 10_000, "../" * 50, "\0", "\n", "\x1b[2J", "\u2028"),
    *("\ud800", "~nobody/x", "@x", "%s%n", "{0}"),
)

STRANGE = st.one_of(
    st.text(),
    st.text(st.characters()),  # lone surrogates among them
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(ODD_VALUES),
)


def argument(setting: dataclasses.Field) -> st.SearchStrategy[str]:
    return st.builds(
        "--{}={}".format, st.just(setting.name), tame(setting) | tame(setting) | STRANGE
    )


TAME = st.sampled_from(sorted(SETTINGS)).flatmap(
    lambda name: tame(SETTINGS[name]).map(f"--{name}={{}}".format)
)
WILD = st.sampled_from(sorted(SETTINGS)).flatmap(lambda name: STRANGE.map(f"--{name}={{}}".format))
ODD_ARGUMENTS = (
    *("--", "-", "---", "--=", "--prompt", "-prompt=y", "--noperp_neg", "--nowidth", "--perp_neg"),
    *("--preset=paper", "--preset=sd", "--preset=none", "--undefok=x", "--undefok"),
    *("--flagfile=/dev/null", "--flagfile=/", "--verbosity=x"),
)
NO_FLAG = st.one_of(
    STRANGE.filter(lambda text: not text.startswith("-")),
    STRANGE.map("--no_such_flag={}".format),
    STRANGE.map("--flagfile={}".format),
    st.sampled_from(ODD_ARGUMENTS),
)
COMMAND_LINES = st.lists(TAME, max_size=8) | st.lists(
    st.one_of(TAME, TAME, TAME, WILD, NO_FLAG), max_size=6
)


@pytest.fixture(scope="module")
def command():
    """Runs a command line up to its checked configuration: exit code, stderr, configuration.

    absl measures how far an unknown flag is from each other one; half of the time would go there.
    """
    if "prompt" not in flags.FLAGS:
        program.define_flags()

    def run(arguments: list[str]) -> tuple[int, str, configs.Config | None]:
        configurations: list[configs.Config] = []

        def main() -> int:
            configurations.append(configs.config_from_flags())
            return 0

        flags.FLAGS.unparse_flags()
        argv, sys.argv, stderr = sys.argv, ["main", *arguments], io.StringIO()
        try:
            with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as raised:
                cli.run(main)
        finally:
            sys.argv = argv
        return raised.value.code, stderr.getvalue(), configurations[0] if configurations else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _helpers, "_damerau_levenshtein", functools.cache(_helpers._damerau_levenshtein)
        )
        yield run


def assert_one_sentence(code: int, stderr: str) -> None:
    lines = [line for line in stderr.splitlines() if not line.startswith("Warning: Hit circular")]
    assert code in (1, 2) and len(lines) == 1, stderr
    assert lines[0].startswith("Error: ") and len(lines[0]) > 15 and lines[0].isprintable()


def assert_works(config: configs.Config, folder: Path) -> None:
    """Takes the steps of a run before its prior is loaded."""
    (folder / "config.json").write_text(json.dumps(configs.to_dict(config)))
    assert configs.read_config(folder / "config.json") == config
    assert not configs.conflicting_settings(config, config)
    assert make_optimizer(config.optimizer, config.train.steps)
    scheme = SCHEMES.get(config.view_prompts.view_words, view_prompts.PAPER)
    assert all(view_prompts.table_prompts(config.train.prompt, scheme))
    assert view_prompts.negative_prompts(config.view_prompts, scheme)


@pytest.mark.parametrize(
    "count", [150, pytest.param(20_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_any_command_line_works_or_is_refused_in_one_sentence(
    count, command, tmp_path, record_property
):
    outcomes = collections.Counter()

    @hypothesis.settings(max_examples=count, **REPEATED)
    @hypothesis.given(COMMAND_LINES)
    def check(arguments):
        code, stderr, config = command(["--prompt=a cup", *arguments])
        outcomes["worked" if config else "refused"] += 1
        if config:
            assert (code, stderr) == (0, "")
            assert_works(config, tmp_path)
        else:
            assert_one_sentence(code, stderr)

    check()
    record_property("outcomes", dict(outcomes))
    print(dict(outcomes))
    assert (
        sum(outcomes.values()) >= count and min(outcomes["worked"], outcomes["refused"]) > count / 5
    )
