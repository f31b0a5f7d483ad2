"""Where a model is found, which files are downloaded, and the messages when there are none."""

from fnmatch import fnmatch
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from dreamfusion_jax.diffusion.loading.hub import CLIP, RETIRED, needed_files, resolve_model
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.evaluation.judges import find_judge
from dreamfusion_jax.runs.open_prior import open_prior
from dreamfusion_jax.runtime.errors import UserError

# What lies in a real repository of Stable Diffusion 1.x.
REPOSITORY = """
.gitattributes README.md model_index.json v1-5-pruned.ckpt v1-5-pruned-emaonly.safetensors
feature_extractor/preprocessor_config.json safety_checker/config.json
safety_checker/model.safetensors safety_checker/pytorch_model.bin scheduler/scheduler_config.json
text_encoder/config.json text_encoder/model.fp16.safetensors text_encoder/model.safetensors
text_encoder/pytorch_model.bin text_encoder/pytorch_model.fp16.bin tokenizer/merges.txt
tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
unet/config.json unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.non_ema.safetensors unet/diffusion_pytorch_model.safetensors
vae/config.json vae/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.safetensors
""".split()


def fetched(variant: str) -> set[str]:
    patterns = needed_files(variant)
    return {name for name in REPOSITORY if any(fnmatch(name, pattern) for pattern in patterns)}


def test_only_the_needed_files_are_fetched():
    common = {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    }
    assert fetched("") == common | {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert fetched("fp16") == common | {
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


def test_of_a_clip_only_the_files_a_judge_reads_are_fetched(tmp_path, monkeypatch):
    tokenizer = {"merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"}
    wanted = {"config.json", "model.safetensors", "preprocessor_config.json", *tokenizer}
    others = {"README.md", "flax_model.msgpack", "pytorch_model.bin", "onnx/config.json", "x.json"}
    patterns = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *_, allow_patterns, **__: patterns.extend(allow_patterns) or str(tmp_path),
    )
    assert resolve_model("owner/name", model=CLIP) == tmp_path
    matches = {n for n in wanted | others if any(fnmatch(n, pattern) for pattern in patterns)}
    assert matches == wanted


@pytest.mark.parametrize("name", ["a/b/c", "owner/name", __file__])
def test_messages_name_the_argument_that_names_the_judge(name, monkeypatch):
    def refuse(*arguments, **options):
        raise http(errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=f"^judge={name} is ") as error:
        resolve_model(name, model=CLIP)
    assert "prior" not in str(error.value) and "\n" not in str(error.value)


def test_shards_are_needed_with_their_index():
    names = ("-00001-of-00002.safetensors", ".safetensors.index.json")
    for name in names:
        path = f"unet/diffusion_pytorch_model{name}"
        assert any(fnmatch(path, pattern) for pattern in needed_files())
        assert not any(fnmatch(path, pattern) for pattern in needed_files("fp16"))


@pytest.mark.parametrize("wanted, there", [("fp16", ""), ("", "fp16")])
def test_a_repository_without_the_variant_gives_what_it_has(wanted, there, tmp_path, monkeypatch):
    """Its U-Net has both, as many fine-tunes' autoencoders and text encoders have not."""
    weights = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    weights |= {"text_encoder": "model"}
    repository = {f"unet/diffusion_pytorch_model{'.fp16' * bool(wanted)}.safetensors"}
    for folder, stem in weights.items():
        repository |= {
            f"{folder}/config.json",
            f"{folder}/{stem}{'.fp16' * bool(there)}.safetensors",
        }
    fetched: list[str] = []

    def download(repository_id, revision, allow_patterns):
        new = [n for n in sorted(repository) if any(fnmatch(n, p) for p in allow_patterns)]
        for name in new:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("{}")
        fetched.extend(name for name in new if name not in fetched)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name", variant=wanted) == tmp_path
    other = f"unet/diffusion_pytorch_model{'.fp16' * bool(there)}.safetensors"
    assert set(fetched) == repository - {other}


def test_a_directory_is_itself(tmp_path):
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_repository_is_fetched_into_the_hubs_cache(tmp_path, monkeypatch):
    arguments = {}

    def download(repository, **options):
        arguments.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name", "v2", "fp16") == tmp_path
    assert arguments == {
        "repository": "owner/name",
        "revision": "v2",
        "allow_patterns": needed_files("fp16"),
    }


@pytest.mark.parametrize("name", ["no such folder", "a/b/c", "/nowhere", "./nowhere", ""])
def test_neither_directory_nor_id_is_one_sentence(name):
    with pytest.raises(UserError, match="is not a directory.*hub id"):
        resolve_model(name)


def test_of_single_files_only_safetensors_are_accepted(tmp_path):
    for name in ("model.safetensors", "model.ckpt"):
        (tmp_path / name).touch()
    assert resolve_model(str(tmp_path / "model.safetensors")) == tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="one file.* a .ckpt or .pt is a pickle.*save_file"):
        resolve_model(str(tmp_path / "model.ckpt"))
    with pytest.raises(UserError, match="^judge=.* is one file"):
        resolve_model(str(tmp_path / "model.safetensors"), model=CLIP)


def http(error: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return error("refused", response=SimpleNamespace(headers={}, request=None))


REFUSALS = {
    "gated": (http(errors.GatedRepoError), "is gated: accept its license"),
    "unknown": (http(errors.RepositoryNotFoundError), "nor a repository on the hub"),
    "revision": (http(errors.RevisionNotFoundError), "^revision=v2 does not exist"),
    "offline": (errors.LocalEntryNotFoundError("no"), "HF_HUB_OFFLINE"),
    "server": (http(errors.HfHubHTTPError), "could not be downloaded"),
    "disk": (OSError("no space left"), "could not be downloaded .no space left"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_every_refusal_of_the_hub_is_explained(case, monkeypatch):
    refusal, message = REFUSALS[case]

    def refuse(*arguments, **options):
        raise refusal

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=message) as error:
        resolve_model("owner/name", "v2")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
@pytest.mark.parametrize("retired", RETIRED)
def test_retired_repositories_say_where_to_look_now(retired, offline, monkeypatch):
    def refuse(*arguments, **options):
        if offline:
            raise errors.LocalEntryNotFoundError("no")
        raise http(errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=f"^prior={retired} was taken down.* {RETIRED[retired]} "):
        resolve_model(retired)


def test_commands_name_the_flag_of_the_refused_argument():
    with pytest.raises(UserError, match="^--prior=no such folder is not a directory"):
        open_prior(PriorOptions(prior="no such folder"))
    with pytest.raises(UserError, match="^--revision=../up is not a valid revision"):
        open_prior(PriorOptions(prior="owner/name", revision="../up"))
    with pytest.raises(UserError, match="^--judge=no such folder is not a directory"):
        find_judge("no such folder", "", ["a red chair", "a blue mug"])
