"""A run's prior is known by its files' digest, not by how its path is spelled."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreamfusion_jax import text_to_3d
from dreamfusion_jax.diffusion.loading.model_files import pipeline_digest
from dreamfusion_jax.runs import prior_cache, prior_record
from dreamfusion_jax.runtime.errors import UserError

TINY = {"field": "image", "image_size": 8, "preview_size": 8}


def make(prior, workdir, steps):
    prior_cache._run.clear()  # as in a program of its own
    return text_to_3d("a cup", prior, workdir=workdir, steps=steps, **TINY).step


def change_weights(prior):
    file = prior / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + np.float32(1e-3)}, file)


def test_the_digest_follows_what_is_read_not_where(tiny_prior, tmp_path):
    copy = shutil.copytree(tiny_prior, tmp_path / "copy")
    digest = pipeline_digest(tiny_prior)
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_diffusers_version": "9"}))
    assert pipeline_digest(copy) == digest
    scheduler = copy / "scheduler" / "scheduler_config.json"
    text = scheduler.read_text()
    scheduler.write_text(text.replace("v_prediction", "epsilon"))
    assert pipeline_digest(copy) != digest
    scheduler.write_text(text)
    change_weights(copy)
    assert pipeline_digest(copy) != digest


def test_a_moved_prior_goes_on_and_a_changed_one_does_not(tiny_prior, tmp_path, monkeypatch):
    shutil.copytree(tiny_prior, tmp_path / "prior")
    workdir = tmp_path / "run"
    make(tmp_path / "prior", workdir, 1)
    monkeypatch.chdir(tmp_path)
    assert make("./prior", workdir, 2) == 2
    os.rename("prior", "moved")
    assert make("moved", workdir, 3) == 3
    change_weights(tmp_path / "moved")
    with pytest.raises(UserError, match="another prior .*moved are now .*name another workdir"):
        make("moved", workdir, 4)
    shutil.copytree("moved", "elsewhere")
    with pytest.raises(UserError, match="run with other settings \\(prior="):
        make("elsewhere", workdir, 3)


def test_a_run_without_a_record_continues_as_it_was_spelled(tiny_prior, tmp_path):
    """As earlier versions left it."""
    shutil.copytree(tiny_prior, tmp_path / "copy")
    workdir = tmp_path / "run"
    make(tiny_prior, workdir, 1)
    (workdir / prior_record.FILE).unlink()
    with pytest.raises(UserError, match="run with other settings \\(prior="):
        make(tmp_path / "copy", workdir, 2)
    assert make(tiny_prior, workdir, 2) == 2
    assert prior_record.recorded_digest(workdir) == pipeline_digest(tiny_prior)
