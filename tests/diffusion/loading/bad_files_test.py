"""Files of any content are read, or refused by name in one sentence; no code in them runs."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.runtime.errors import PriorError
from tests.diffusion import fuzz
from tests.diffusion.loading.single_file_test import write_pair

UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = f"{UNET}.index.json"
MAX_MB = 1024


@pytest.fixture
def prior(pipeline_dir, tmp_path):
    """Copies the pipeline, to be corrupted."""
    return Path(shutil.copytree(pipeline_dir, tmp_path / "prior"))


@pytest.mark.parametrize(
    "count", [150, pytest.param(20_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_spoilt_files_are_read_or_refused_within_time_and_memory(
    count, pipeline_dir, redraw, tmp_path, tmp_path_factory, record_property
):
    """Files truncated, flipped, spliced, with false headers, or no files at all (see fuzz.py).

    It also holds that nothing is written outside the workspace or read from a folder that only a
    file's contents name, that nothing is unpickled and that nothing is connected to.
    """
    command = [sys.executable, "-m", "tests.diffusion.fuzz", "--fuzz_seed=0", f"--count={count}"]
    checkpoint = write_pair(tmp_path_factory.mktemp("checkpoint"), "1", redraw)
    command += [f"--pipeline={pipeline_dir}", f"--workspace={tmp_path}"]
    command += [f"--checkpoint={checkpoint}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=1800 + count
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / fuzz.REPORT).read_text())
    record_property("report", report)
    print(report)
    assert not report["findings"]
    counts = report["counts"]
    assert counts["worked"] + counts["refused"] == count
    assert min(counts["worked"], counts["refused"]) > count / 5, "both outcomes must be frequent"
    assert report["peaks_mb"][-1][0] < MAX_MB


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "name",
    [
        *("diffusion_pytorch_model.bin", "diffusion_pytorch_model.ckpt", "pytorch_model.pt"),
        *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    ],
)
@pytest.mark.parametrize("way", ["file", "link", "shard"])
def test_no_pickle_is_ever_loaded(name, way, prior, tmp_path):
    """Neither under its own name nor under a safetensors file's, nor by a link or an index."""
    (prior / UNET).unlink()
    trap = prior / "unet" / name
    trap.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    if way == "link":
        (prior / "unet" / "trap.bin").write_bytes(trap.read_bytes())
        trap.unlink()
        trap.symlink_to("trap.bin")
    if way == "shard":
        (prior / INDEX).write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    with pytest.raises(PriorError, match="pickle|not a whole safetensors|not a safetensors"):
        load_prior(prior)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists(), "the trap works"


def test_pickles_beside_the_weights_are_left_alone(prior, tmp_path):
    for folder in (prior, *(path for path in prior.iterdir() if path.is_dir())):
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "tokenizer.pkl", "x.ckpt"):
            (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    load_prior(prior)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "name", ["..", "", ".", "/x", "../x.safetensors", "a/b.safetensors", "x", 7]
)
def test_an_index_names_only_safetensors_files_beside_it(name, prior):
    """Were it followed, every one of these would find the true weights."""
    for place in (prior / "x.safetensors", prior / "unet/x", prior / "unet/a/b.safetensors"):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(prior / UNET, place)
    weight_map = dict.fromkeys(load_file(prior / UNET), name if name != "/x" else str(prior / "x"))
    (prior / UNET).unlink()
    (prior / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(PriorError, match="index.json names .* not a safetensors file beside it"):
        load_prior(prior)


TOKENIZER_LEADS = {
    "vocabulary": ("tokenizer_config.json", {"vocab": "{away}/vocab.json"}),
    "merges": ("tokenizer_config.json", {"merges": "{away}/merges.txt"}),
    "inputs": (
        "tokenizer_config.json",
        {"init_inputs": ["{away}/vocab.json", "{away}/merges.txt"]},
    ),
    "versions": (
        "tokenizer_config.json",
        {"fast_tokenizer_files": ["../../away/tokenizer.1.0.json"]},
    ),
    "gguf": ("tokenizer_config.json", {"gguf_file": "{away}/x.gguf"}),
    "marks that are files": ("special_tokens_map.json", {"vocab_file": "{away}/vocab.json"}),
    "marks that are a tokenizer": (
        "special_tokens_map.json",
        {"tokenizer_file": "{away}/tokenizer.1.0.json"},
    ),
}


@pytest.mark.parametrize("case", TOKENIZER_LEADS)
def test_a_tokenizers_files_lead_to_none_elsewhere(case, prior, tmp_path):
    """transformers would follow each of them."""
    away = tmp_path / "away"
    shutil.copytree(prior / "tokenizer", away)
    shutil.copy(away / "tokenizer.json", away / "tokenizer.1.0.json")
    name, entries = TOKENIZER_LEADS[case]
    there = prior / "tokenizer" / name
    held = json.loads(there.read_text()) if there.exists() else {}
    added = json.loads(json.dumps(entries).replace("{away}", str(away)))
    there.write_text(json.dumps({**held, **added}))
    with pytest.raises(PriorError, match=f"{name}: '{next(iter(entries))}' is not supported"):
        load_tokenizer(prior / "tokenizer", 12)


def test_the_links_of_the_hubs_cache_are_followed(prior, tmp_path):
    """snapshots/<commit>/<file> -> ../../blobs/<hash>, as huggingface_hub lays its cache out."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(p for p in sorted(prior.rglob("*")) if p.is_file()):
        path.rename(blobs / str(number))
        link = snapshot / path.relative_to(prior)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    linked_prior, params = load_prior(snapshot)
    assert linked_prior.image_size == 16 and params["unet"]


def test_two_tensors_of_one_meaning_are_refused(prior):
    """`a.0.b` and `a_0.b` are the same parameter: neither may win in silence."""
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    held = load(prior / UNET)
    held["down_blocks_0.resnets.0.conv1.bias"] = torch.zeros(16)
    save(held, prior / UNET)
    with pytest.raises(PriorError, match="unet holds weights whose names fit no network"):
        load_prior(prior)


@pytest.mark.parametrize("name", [UNET, "unet/config.json", "model_index.json"])
def test_a_file_that_may_not_be_read_is_not_called_broken(name, prior, monkeypatch):
    opened = Path.open

    def refuse(self, *args, **kwargs):
        if self == prior / name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PriorError, match="Permission denied.*check its permissions") as raised:
        load_prior(prior)
    assert str(prior / name) in str(raised.value)
    assert not re.search("download|JSON|whole", str(raised.value))
