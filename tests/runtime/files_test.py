"""What users write as a path: homes, buckets, and names that are neither; the same everywhere."""

import os
import pwd
from pathlib import Path

import huggingface_hub.constants
import jax
import pytest
from absl import flags

from dreamfusion_jax import evaluate, sample, studio
from dreamfusion_jax.config import cli, flagfiles
from dreamfusion_jax.config.flags import config_from_settings
from dreamfusion_jax.config.prompts_file import read_prompts
from dreamfusion_jax.diffusion.loading.hub import resolve_model
from dreamfusion_jax.runs.checkpoint import open_scene
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import as_path, local_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_home(monkeypatch):
    """As for `docker run --user 1234`: no variable, and no entry in the list of users."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_path_is_local_at_home_or_in_a_bucket(home):
    assert as_path("a/b") == Path("a/b")
    assert as_path("~/run") == home / "run" and as_path("a/~/b") == Path("a/~/b")
    assert str(as_path("gs://bucket/run")) == "gs://bucket/run"
    assert as_path("odd: //name") == Path("odd: //name")


@pytest.mark.parametrize("name", ["foo://x", "file:///tmp/x", "https://host/x", "C://x"])
def test_an_unknown_kind_of_place_is_one_sentence(name):
    with pytest.raises(UserError, match=f"^--workdir={name} is in no place .*: give a local path"):
        as_path(name, "workdir")


def test_a_bucket_that_went_through_pathlib_is_named():
    with pytest.raises(UserError, match="gs:/bucket/run lacks a slash"):
        as_path(os.fspath(Path("gs://bucket/run")))


def test_a_missing_home_is_one_sentence(no_home):
    with pytest.raises(UserError, match="^~/run begins with ~, .* no such home .*: set HOME"):
        as_path("~/run")
    with pytest.raises(UserError, match="^--output=~no-such-user/x begins with ~"):
        as_path("~no-such-user/x", "output")


def test_what_must_be_local_is_in_no_bucket():
    with pytest.raises(UserError, match="--output=gs://bucket/x is in a bucket; name a place on"):
        local_path("gs://bucket/x", "output")


def of_evaluate(name: str, flag: str) -> object:
    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", f"--{flag}={name}", "--measure=assets"])
    evaluate.flags.FLAGS, own = values, evaluate.flags.FLAGS
    try:
        return evaluate.main()
    finally:
        evaluate.flags.FLAGS = own


# Everything that takes a path from a user.
TAKERS = {
    "workdir": lambda name: config_from_settings("toybox", {"prompt": "x", "workdir": name}),
    "compilation_cache": cli.use_compilation_cache,
    "workdir of render": lambda name: open_scene(name, ""),
    "prompts_file": read_prompts,
    "flagfile": lambda name: flagfiles.expand([f"--flagfile={name}"]),
    "output": sample._writable_png,
    "workdirs": evaluate.finished_runs,
    "json": lambda name: of_evaluate(name, "json"),
    "pictures": lambda name: of_evaluate(name, "pictures"),
    "prior": resolve_model,
    "root": studio.make_root,
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", ["foo://x.png", "~/x.png"])
def test_every_flag_for_a_path_refuses_what_is_none(taker, name, no_home):
    with pytest.raises(UserError, match=rf"{taker.split()[0]}={name} (is in no place|begins)"):
        TAKERS[taker](name)


def test_a_run_knows_the_folder_that_was_meant(home):
    settings = {"prompt": "x", "workdir": "~/run", "compilation_cache": "~/compiled"}
    run = config_from_settings("toybox", settings).run
    assert (run.workdir, run.compilation_cache) == (str(home / "run"), str(home / "compiled"))


@pytest.mark.parametrize("home_folder", [None, "/dev/null"])
def test_without_a_home_programs_are_compiled_each_time(home_folder, no_home, monkeypatch, capsys):
    if home_folder:
        monkeypatch.setenv("HOME", home_folder)
    before = jax.config.jax_compilation_cache_dir
    cli.use_compilation_cache("auto")
    assert jax.config.jax_compilation_cache_dir == before
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "no home folder" in note and "--compilation_cache" in note


def test_without_a_home_nothing_is_downloaded_to_a_folder_named_tilde(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("late"))
    with pytest.raises(UserError, match="^prior=owner/name .* no home folder here: set HF_HOME"):
        resolve_model("owner/name")
