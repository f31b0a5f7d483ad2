"""experiments/ works: flagfiles parse, and scripts do what they should."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from absl import flags

from dreamfusion_jax.config import flags as configs

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SCRIPT = EXPERIMENTS / "tpu" / "queued_resources.sh"

# A gcloud that keeps the slice's state in a file, tells of every call, and loses the slice as the
# job runs for the first time.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> calls
case "$*" in
  *queued-resources\\ describe*)
    [[ -f state ]] || exit 1
    cat state
    [[ $(cat state) == WAITING_FOR_RESOURCES ]] && echo ACTIVE > state
    exit 0 ;;
  *queued-resources\\ create*) echo WAITING_FOR_RESOURCES > state ;;
  *queued-resources\\ delete*) rm state ;;
  *dreamfusion_jax.main*)
    echo once >> runs
    if [[ -f fails ]]; then exit 1; fi
    if [[ $(wc -l < runs) == 1 ]]; then echo SUSPENDED > state; exit 255; fi ;;
esac
"""


def parses(arguments):
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    configs.parse_flags(["program", *arguments], values)
    return configs.config_from_flags(values)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.cfg")), ids=lambda path: path.stem)
def test_flagfiles_parse(path, monkeypatch):
    monkeypatch.chdir(EXPERIMENTS.parent)
    assert parses([f"--flagfile={path}"]).train.prompt


@pytest.fixture
def submit(tmp_path):
    """Runs the script with the fake gcloud: arguments -> process, calls in their order."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").write_text(GCLOUD)
    (tmp_path / "bin" / "gcloud").chmod(0o755)
    subprocess.run(
        "git init -q && git -c user.name=x -c user.email=x@x.example commit -q --allow-empty -m x",
        shell=True,
        cwd=tmp_path,
        check=True,
    )

    def run(*arguments, **environment):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        result = subprocess.run(
            [SCRIPT, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "POLL": "0", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = tmp_path / "calls"
        return result, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_a_preempted_slice_is_requested_again(submit, tmp_path):
    result, calls = submit("--prompt=a red chair", BUCKET="gs://bucket/chair", ZONE="zone-1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "Done: gs://bucket/chair"
    verbs = [
        verb
        for call in calls
        for verb in ("create", "delete", "dreamfusion_jax.main")
        if f" {verb} " in call
    ]
    assert verbs == ["create", "dreamfusion_jax.main", "delete"] * 2
    assert not (tmp_path / "state").exists(), "the slice is given back"
    assert all("--zone=zone-1" in call for call in calls)
    (command,) = {
        call.split("--command=")[1].split(" --zone")[0]
        for call in calls
        if "dreamfusion_jax.main" in call
    }
    arguments = shlex.split(command.split("dreamfusion_jax.main")[1])
    config = parses(arguments)
    assert config.train.prompt == "a red chair" and config.run.workdir == "gs://bucket/chair"


def test_a_failing_job_is_not_retried_forever(submit, tmp_path):
    (tmp_path / "fails").touch()
    result, calls = submit("--prompt=x", BUCKET="gs://bucket/x")
    assert result.returncode == 1 and "the job failed twice" in result.stderr
    assert sum("dreamfusion_jax.main" in call for call in calls) == 2
    assert (tmp_path / "state").exists(), "the slice is left, to look at"


def test_a_missing_bucket_is_reported_before_any_request(submit):
    result, calls = submit("--prompt=x")
    assert result.returncode != 0 and "BUCKET=gs://bucket/folder" in result.stderr and not calls


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean():
    result = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "given", [{"PROMPT": "a red chair"}, {"ARGUMENTS": "--prompt=x --steps=5"}]
)
def test_the_skypilot_task_installs_and_runs_the_program(given):
    task = yaml.safe_load((EXPERIMENTS / "tpu" / "skypilot.yaml").read_text())
    assert '".[tpu]"' in task["setup"] and task["resources"]["use_spot"]
    environment = {**task["envs"], "BUCKET": "gs://bucket/chair", **given}
    (line,) = [line for line in task["run"].splitlines() if "dreamfusion_jax.main" in line]
    arguments = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line.split('dreamfusion_jax.main')[1]}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    config = parses(arguments)
    assert config.run.workdir == "gs://bucket/chair"
    assert config.train.prompt == given.get("PROMPT", "x")


def test_a_task_without_a_bucket_says_so():
    task = yaml.safe_load((EXPERIMENTS / "tpu" / "skypilot.yaml").read_text())
    result = subprocess.run(
        ["bash", "-c", task["run"]], env={**os.environ, **task["envs"]}, capture_output=True
    )
    assert result.returncode != 0 and b"BUCKET=gs://bucket/folder is missing" in result.stderr
