"""The studio's form asks for what the settings declare; its errors are the command's."""

import shutil

import pytest
from absl import flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import PRESETS, config_from_settings, setting_names
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.runs.open_prior import open_prior
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.webui import forms


def test_every_setting_is_asked_for_once_or_hidden_on_purpose():
    names = [field.name for field in forms.all_fields()]
    assert len(set(names)) == len(names)
    assert set(names) | set(forms._HIDDEN) == set(setting_names())
    assert not set(names) & set(forms._HIDDEN)


@pytest.mark.parametrize("preset", PRESETS)
def test_an_untouched_form_gives_the_preset(preset, tmp_path):
    config = forms.make_config(tmp_path, [], "a red chair", preset, forms.preset_values(preset))
    assert config == config_from_settings(
        preset, {"prompt": "a red chair", "workdir": str(tmp_path / "a-red-chair")}
    )
    expected = [] if preset == "toybox" else [f"--preset={preset}"]
    extra = reproduce.arguments(config)[1:]
    assert extra == [*expected, f"--workdir={tmp_path / 'a-red-chair'}"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "--steps must be"),
        ("steps", 2.5, "--steps=2.5"),
        ("steps", 7.0, None),
        ("seed", None, None),
        ("fov_deg", "40,x", "--fov_deg=40,x"),
        ("fov_deg", "50", None),
        ("render_size", "64,128", "--render_milestones"),
        ("render_size", "64.5", "--render_size=64.5"),
        ("field", "cloud", "--field=cloud: value should be one of"),
        ("perp_neg", True, "--perp_neg needs --view_words=paper"),
    ],
)
def test_wrong_values_get_the_command_s_sentence(name, value, message, tmp_path):
    values = values_with(name, value)
    if message is None:
        forms.make_config(tmp_path, [], "a cup", "toybox", values)
        return
    with pytest.raises(UserError, match=message) as raised:
        forms.make_config(tmp_path, [], "a cup", "toybox", values)
    assert forms.concerned_field(raised.value) in (name, "render_milestones")
    with pytest.raises((UserError, flags.Error)) as of_command:
        parse_as_command(f"--{name}={str(value).lower()}")
    assert str(of_command.value) == str(raised.value)


def values_with(name, value):
    values = forms.preset_values("toybox")
    values[[field.name for field in forms.all_fields()].index(name)] = value
    return values


def parse_as_command(argument):
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    configs.parse_flags(["main", "--prompt=a cup", argument], values)
    return configs.config_from_flags(values)


def test_a_prior_s_faults_are_told_at_its_field(tiny_prior, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    shutil.copytree(tiny_prior, tmp_path / "weightless")
    (tmp_path / "weightless" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    for prior in ("/nowhere", str(tmp_path / "broken"), str(tmp_path / "weightless")):
        with pytest.raises(UserError) as of_command:
            open_prior(PriorOptions(prior=prior))
        with pytest.raises(UserError) as raised:
            forms.make_config(tmp_path, [], "a cup", "toybox", values_with("prior", prior))
        assert str(of_command.value) == str(raised.value)
        assert forms.concerned_field(raised.value) == "prior"


def test_an_error_about_no_field_is_told_at_the_button():
    assert forms.concerned_field(UserError("--workdir=x is not a folder of y.")) == ""
    assert forms.concerned_field(UserError("--prompt is empty.")) == forms.PROMPT


@pytest.mark.parametrize("prompt", ["", "  ", "x" * 10_000, "a\0b"])
def test_impossible_prompts_are_refused(prompt, tmp_path):
    with pytest.raises(UserError, match="--prompt"):
        forms.make_config(tmp_path, [], prompt, "toybox", forms.preset_values("toybox"))


@pytest.mark.parametrize("prompt", ["../../etc", "<script>", "😀", "كرسي أحمر", "a/b", ".studio"])
def test_any_prompt_becomes_one_folder_below_the_root(prompt, tmp_path):
    first = forms.free_name(tmp_path, prompt, [])
    second = forms.free_name(tmp_path, prompt, [first])
    assert first != second
    for name in (first, second):
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert not name.startswith(".")
