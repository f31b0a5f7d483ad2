import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
import trimesh
from absl import flags

from dreamfusion_jax import main
from dreamfusion_jax.config import cli
from dreamfusion_jax.main import define_flags
from dreamfusion_jax.runs import job, lock, loop, open_prior, outputs

TINY = (
    "--prompt=a red chair",
    "--steps=2",
    "--width=8",
    "--depth=1",
    "--proposal_samples=4",
    "--fine_samples=4",
    "--poster_size=8",
    "--sheet_size=8",
    "--preview_size=8",
    "--turntable_size=8",
    "--turntable_frames=3",
    "--mesh_resolution=12",
    "--texture_size=32",
    "--compilation_cache=none",
)


@pytest.fixture
def program(monkeypatch, tiny_prior, capsys):
    """Runs the program in this process: arguments -> exit code, stdout, stderr."""
    if "prompt" not in flags.FLAGS:
        define_flags()

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["main", *TINY, f"--prior={tiny_prior}", *arguments])
        with pytest.raises(SystemExit) as raised:
            cli.run(main.main)
        return raised.value.code, *capsys.readouterr()

    return run


def test_a_run_writes_all_outputs_once(program, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    code, stdout, _ = program(f"--workdir={workdir}")
    assert code == 0
    for name in outputs.SCENE_FILES:
        assert name in stdout and (workdir / name).stat().st_size > 0, name
    assert str(workdir) in stdout.splitlines()[-1]
    assert (workdir / "preview.png").exists() and list((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["train"]["prompt"] == "a red chair"
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()] == [2]
    assert imageio.imread(workdir / "contact_sheet.png").shape == (24, 72, 3)
    assert len(imageio.mimread(workdir / "turntable.gif")) == 3
    assert imageio.get_reader(workdir / "turntable.mp4").count_frames() == 3
    for name in ("mesh.glb", "mesh.obj", "mesh.ply"):
        assert len(trimesh.load(workdir / name, force="mesh").faces) > 10, name

    with monkeypatch.context() as patch:
        for module, function in ((loop, "train"), (loop, "prepare"), (job, "make_outputs")):
            patch.setattr(module, function, lambda *_: pytest.fail("work is done twice"))
        code, stdout, _ = program(f"--workdir={workdir}", "--mesh_threshold=5")
        assert code == 0 and "finished" in stdout

    for arguments, message in (
        (["--width=9", "--guidance_scale=7"], "--width=8, not 9, --guidance_scale=6.0, not 7.0"),
        (["--steps=1"], "--steps"),
        (["--prompt=a blue cup"], "--prompt"),
    ):
        code, _, error = program(f"--workdir={workdir}", *arguments)
        assert code == 2 and message in error

    (workdir / "mesh.glb").unlink()
    code, _, _ = program(f"--workdir={workdir}")
    assert code == 0 and (workdir / "mesh.glb").exists()


@pytest.mark.slow
def test_a_second_stage_goes_on_from_the_first(program, tmp_path):
    """On the embedded prior, with all outputs; the page and config.json tell where it started."""
    first, second = tmp_path / "first", tmp_path / "second"
    shared = ("--prior=toybox", "--surface_points=16", "--mesh_resolution=24")
    code, _, _ = program(*shared, "--field=sdf", "--blur_start=0.005", f"--workdir={first}")
    assert code == 0
    refine = (*shared, "--preset=refine", f"--init_from={first}", f"--workdir={second}")
    code, stdout, _ = program(*refine, "--width=9")
    assert code == 2 and not (second / "config.json").exists()
    code, stdout, _ = program(*refine)
    assert code == 0 and f"Starting from {first} after step 2" in stdout
    for name in outputs.SCENE_FILES:
        assert (second / name).stat().st_size > 0, name
    assert json.loads((second / "config.json").read_text())["train"]["init_from"] == str(first)
    page = (second / "index.html").read_text()
    assert "--preset=refine" in page and f"--init_from={first}" in page
    shutil.rmtree(first)
    code, stdout, _ = program(*refine, "--steps=3")
    assert code == 0 and "Continuing" in stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [(), ("--preset=sd", "--variant=", "--sdf_encoding=hash", "--hash_log2_rows=10", *TINY)],
    ids=["toybox", "sd"],
)
def test_one_command_makes_both_stages(program, tmp_path, loads, preset):
    """With all outputs; the prior is read once, and the page shows both meshes."""
    workdir = tmp_path / "run"
    command = (
        *("--field=sdf", "--second_stage_steps=2", "--surface_points=16", "--trace_steps=8"),
        *("--mesh_resolution=24", f"--workdir={workdir}", *preset),
    )
    code, stdout, _ = program(*command)
    assert code == 0 and len(loads) == 1
    assert f"Starting from {workdir / 'first_stage'} after step 2" in stdout
    for name in outputs.SCENE_FILES:
        assert (workdir / name).stat().st_size > 0, name
    for name in ("poster.png", "mesh.glb", "index.html"):
        assert (workdir / "first_stage" / name).stat().st_size > 0, name
    page = (workdir / "index.html").read_text()
    assert "Finished, 4 steps" in page and "The mesh before" in page and "The mesh after" in page
    assert "--second_stage_steps=2" in page
    code, stdout, _ = program(*command)
    assert code == 0 and "is finished" in stdout and len(loads) == 1


@pytest.fixture(autouse=True)
def signals_as_before():
    """`cli.run` is not meant to return to anybody."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_ctrl_c_saves_and_prints_how_to_continue(program, tmp_path, monkeypatch):
    workdir = tmp_path / "stopped"

    def preview(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return np.zeros((8, 32, 3), np.uint8)

    monkeypatch.setattr(loop, "FIRST_PREVIEW_STEP", 1)
    monkeypatch.setattr(loop.images, "preview", preview)
    code, _, error = program(f"--workdir={workdir}")
    assert code == cli.EXIT_INTERRUPTED == 130
    assert "after step 1" in error and "python -m dreamfusion_jax.main" in error
    assert "'--prompt=a red chair'" in error, "the command can be pasted into a shell"
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]


@pytest.fixture
def loads(monkeypatch) -> list[int]:
    """Grows by one whenever a prior is loaded."""
    loads: list[int] = []
    load_prior = open_prior.load_prior
    monkeypatch.setattr(
        open_prior, "load_prior", lambda *args: loads.append(1) or load_prior(*args)
    )
    return loads


def test_a_flat_image_is_written_with_samples_of_the_run_s_prior(program, tmp_path, loads):
    workdir = tmp_path / "flat"
    code, stdout, _ = program(
        f"--workdir={workdir}", "--field=image", "--image_size=12", "--steps=30"
    )
    assert code == 0 and "picture.png" in stdout and "mesh" not in stdout
    assert len(loads) == 1, "the prior is loaded once"
    image = imageio.imread(workdir / "picture.png")
    assert image.shape == (12, 12, 3) and image.std() > 0.0, "no longer gray"
    assert imageio.imread(workdir / "comparison.png").shape == (8, 5 * 8, 3)
    assert imageio.imread(workdir / "preview.png").shape == (8, 8, 3)


def prompts_file(folder, text):
    path = folder / "prompts.txt"
    path.write_text(text)
    return f"--prompts_file={path}"


def test_a_file_of_prompts_becomes_one_asset_after_another(program, tmp_path, loads, monkeypatch):
    prompts_flag = prompts_file(
        tmp_path, "# a comment\na red chair\n\n  a blue cup  \na green car\n"
    )
    workdirs = [tmp_path / "all" / name for name in ("a-red-chair", "a-blue-cup", "a-green-car")]
    # The second of them can never be made, and keeps no other from being made.
    workdirs[1].mkdir(parents=True)
    (workdirs[1] / "config.json").write_text("no json")
    arguments = ("--prompt=", prompts_flag, f"--workdir={tmp_path / 'all'}")
    code, stdout, error = program(*arguments)
    assert code == 1 and "[3/3] a green car" in stdout
    assert f"Error: {workdirs[1] / 'config.json'}" in error
    assert error.splitlines()[-1] == "2 of 3 are done; failed: a blue cup."
    assert len(loads) == 1, "the prior is read once for all"
    for workdir in (workdirs[0], workdirs[2]):
        assert (workdir / "mesh.glb").exists()
    stored = json.loads((workdirs[2] / "config.json").read_text())
    assert stored["train"]["prompt"] == "a green car"
    assert stored["run"]["workdir"] == str(workdirs[2])

    (workdirs[1] / "config.json").unlink()
    loads.clear()
    code, stdout, _ = program(*arguments)
    assert code == 0 and len(loads) == 1
    assert stdout.count("is finished") == 2 and (workdirs[1] / "mesh.glb").exists()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "prepare", lambda *_: pytest.fail("work is done twice"))
        assert program(*arguments)[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompt"),
        ("# nothing\n", "holds no prompt"),
        ("a\0b", "--prompt must not contain"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_of_prompts_is_one_sentence(program, tmp_path, text, message):
    prompts_flag = (
        prompts_file(tmp_path, text) if text is not None else f"--prompts_file={tmp_path}"
    )
    code, _, error = program("--prompt=", prompts_flag)
    assert code == 2 and message in error and len(error.splitlines()) == 1


def test_a_prompt_and_a_file_of_prompts_contradict_each_other(program, tmp_path):
    code, _, error = program(prompts_file(tmp_path, "a blue cup"))
    assert code == 2 and "--prompt contradicts --prompts_file" in error


def test_outputs_interrupted_by_sigterm_are_made_next_time(program, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(
            outputs.mesh_files, "write_mesh", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        )
        code, _, error = program(f"--workdir={workdir}")
    assert code == cli.EXIT_INTERRUPTED and "the same command continues" in error
    assert not (workdir / "outputs.json").exists()
    assert "Stopped after step 2 of 2" in (workdir / "index.html").read_text()
    code, stdout, _ = program(f"--workdir={workdir}")
    assert code == 0 and "is finished" in stdout and (workdir / "mesh.glb").exists()


def test_an_output_that_fails_costs_no_other(program, tmp_path, monkeypatch):
    workdir = tmp_path / "run"

    def no_ffmpeg(frames):
        raise RuntimeError("No ffmpeg exe could be found.")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "encode_mp4", no_ffmpeg)
        code, _, error = program(f"--workdir={workdir}", "--mesh_threshold=1e9")
    assert code == 1 and len(error.strip().splitlines()[-1:]) == 1
    for name in ("turntable.mp4", "No ffmpeg", "pip install", "mesh.glb", "--mesh_threshold"):
        assert name in error.splitlines()[-1], name
    for name in ("poster.png", "contact_sheet.png", "turntable.gif", "progress.png"):
        assert (workdir / name).exists(), name
    page = (workdir / "index.html").read_text()
    assert "Finished, 2 steps" in page and "Missing outputs" in page and "No ffmpeg" in page

    with monkeypatch.context() as patch:
        for made in ("poster", "contact_sheet"):
            patch.setattr(outputs.images, made, lambda *_: pytest.fail("made twice"))
        code, stdout, _ = program(f"--workdir={workdir}")
    assert code == 0 and "turntable.mp4" in stdout and "mesh.glb" in stdout
    assert "Missing outputs" not in (workdir / "index.html").read_text()
    assert not json.loads((workdir / "outputs.json").read_text())["missing"]


def test_a_full_disk_while_optimizing_is_told_by_the_page(program, tmp_path, monkeypatch):
    workdir = tmp_path / "run"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(loop, "FIRST_PREVIEW_STEP", 1)
    monkeypatch.setattr(loop.Checkpoints, "save", full)
    code, _, error = program(f"--workdir={workdir}")
    assert code == 1 and "No space left" in error.splitlines()[-1]
    assert "Stopped after step 0 of 2" in (workdir / "index.html").read_text()


def test_two_jobs_in_one_workdir_are_refused(program, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with lock.locked(workdir):
        code, _, error = program(f"--workdir={workdir}")
    assert code == 2 and "Another job (process" in error and "--workdir" in error


def broken_prior(tiny_prior, folder, name, text):
    shutil.copytree(tiny_prior, folder)
    (folder / name).write_text(text)
    return f"--prior={folder}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prompt="],
        ["--prompt=   "],
        ["--steps=0"],
        ["--steps=many"],
        ["--learning_rate=nan"],
        ["--fov_deg=60,30"],
        ["--no_such_flag=1"],
        ["--flagfile=/no/such/file.cfg"],
        ["stray"],
        ["--prior=/no/such/folder"],
        ["--workdir=/proc/no/such/place"],
        ["--devices=1000"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_bad_input_is_one_sentence_and_exit_code_2(program, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("bad input got as far as training"))
    code, _, error = program(f"--workdir={tmp_path / 'run'}", *arguments)
    assert code == 2
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), error
    name = re.split("[= ]", arguments[0])[0].lstrip("-")
    assert name in lines[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model_index.json", "{"),
        ("unet/config.json", "[]"),
        ("unet/diffusion_pytorch_model.safetensors", "torn"),
        ("tokenizer/vocab.json", "{"),
        ("scheduler/scheduler_config.json", "no json"),
    ],
)
def test_a_malformed_prior_is_one_sentence(program, tiny_prior, tmp_path, name, text):
    prior = broken_prior(tiny_prior, tmp_path / "prior", name, text)
    code, _, error = program(f"--workdir={tmp_path / 'run'}", prior)
    lines = error.strip().splitlines()
    assert code == 1 and len(lines) == 1 and str(tmp_path / "prior") in lines[0], error


def test_the_command_itself_ends_without_a_stack_trace(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "dreamfusion_jax.main", "--prompt="],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert result.returncode == 2 and result.stderr.startswith("Error: --prompt")
    assert not list(tmp_path.iterdir()), "nothing was made"
