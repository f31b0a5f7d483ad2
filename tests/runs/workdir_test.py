"""What a work folder may hold: other settings are told with their values; links lead nowhere."""

import os

import pytest

from dreamfusion_jax.runs.workdir import check_places, prepare_workdir, store_config
from dreamfusion_jax.runtime import files
from dreamfusion_jax.runtime.errors import UserError
from tests.config.flags_test import parse


def test_settings_that_changed_are_told_with_the_stored_values(tmp_path):
    """So that a run goes on although the preset that it began with has other values now."""
    arguments = ("--prompt=a cup", f"--workdir={tmp_path}")
    store_config(parse(*arguments, "--width=8", "--fov_deg=40,50"))
    with pytest.raises(UserError) as error:
        prepare_workdir(parse(*arguments, "--width=9", "--fov_deg=45,55"))
    assert "(--width=8, not 9, --fov_deg=40.0,50.0, not 45.0,55.0)" in str(error.value)
    prepare_workdir(parse(*arguments, "--width=8", "--fov_deg=40,50", "--devices=1"))


@pytest.fixture
def disk(tmp_path):
    """Another disk, and a work folder whose checkpoints are a link to it."""
    disk, workdir = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(disk)
    return workdir, disk


def test_checkpoints_may_be_a_link_to_the_users_own_folder(disk):
    workdir, target = disk
    check_places(workdir)
    (target / "250").mkdir()
    (target / "500.orbax-checkpoint-tmp-3").mkdir()
    check_places(workdir)


@pytest.mark.parametrize("held", ["letter.txt", "250x", ".ssh"])
def test_a_link_to_other_files_is_refused(held, disk):
    workdir, target = disk
    (target / held).touch()
    with pytest.raises(UserError, match="checkpoints is a link that leads out of --workdir"):
        check_places(workdir)


def test_a_link_to_a_folder_of_another_user_is_refused(disk, monkeypatch):
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(UserError, match="leads out of --workdir"):
        check_places(disk[0])


def test_no_other_place_may_be_a_link_to_outside(disk):
    workdir, target = disk
    (workdir / "previews").symlink_to(target)
    with pytest.raises(UserError, match="previews is a link"):
        check_places(workdir)


def test_what_is_moved_may_go_to_another_disk(tmp_path, monkeypatch):
    def rename(*_):
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "250").mkdir()
    (tmp_path / "250" / "state").write_text("x")
    monkeypatch.setattr(os, "rename", rename)
    files.move(tmp_path / "250", tmp_path / "damaged")
    assert (tmp_path / "damaged" / "state").read_text() == "x" and not (tmp_path / "250").exists()
