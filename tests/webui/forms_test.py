"""The studio's form asks for what the settings declare; its errors are the command's."""

import pytest

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import PRESETS, config_from_settings, setting_names
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
        ("steps", 2.5, "--steps must be"),
        ("seed", None, None),
        ("fov_deg", "40,x", "--fov_deg must be one number, or two with a comma"),
        ("fov_deg", "50", None),
        ("render_size", "64,128", "--render_milestones"),
        ("render_size", "64.5", "--render_size must be whole numbers with commas"),
        ("prior", "/nowhere", "/nowhere"),
        ("field", "cloud", "--field must be one of"),
    ],
)
def test_wrong_values_get_the_command_s_sentence(name, value, message, tmp_path):
    values = forms.preset_values("toybox")
    values[[field.name for field in forms.all_fields()].index(name)] = value
    if message is None:
        forms.make_config(tmp_path, [], "a cup", "toybox", values)
        return
    with pytest.raises(UserError, match=message):
        forms.make_config(tmp_path, [], "a cup", "toybox", values)


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
