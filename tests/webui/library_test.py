"""The studio lists what is below its folder, and gives out nothing else."""

import os

import pytest

from dreamfusion_jax.config.flags import config_from_settings
from dreamfusion_jax.runs import lock
from dreamfusion_jax.runs.outputs_record import OutputsRecord, write_record
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.webui import library
from dreamfusion_jax.webui.panels import Shelf


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
        settings = {"prompt": f"a {name}", "steps": 5, "workdir": str(root / name)}
        store_config(config_from_settings("toybox", settings))
    return root


def test_states_are_those_of_locks_and_records(root):
    assert {a.name: a.state for a in library.stored_assets(root)} == {
        "one": library.STOPPED,
        "two": library.STOPPED,
    }
    write_record(root / "two", OutputsRecord(5, (), {}))
    with lock.locked(root / "one"):
        assert library.read_asset(root, "one").state == library.RUNNING
    assert library.read_asset(root, "two").state == library.FINISHED
    assert library.read_asset(root, "two").summary == "a two (finished)"


def test_spoiled_and_foreign_folders_are_left_out(root, tmp_path):
    (root / "one" / "config.json").write_text("{")
    (tmp_path / "elsewhere").mkdir()
    (root / "two" / "config.json").rename(tmp_path / "elsewhere" / "config.json")
    os.symlink(tmp_path / "elsewhere", root / "link")
    assert library.stored_assets(root) == []
    assert library.read_asset(root, "link") is None


@pytest.mark.parametrize("name", ["..", ".", "", "one/../two", "/etc", "link", "a\0b"])
@pytest.mark.parametrize("file", ["secret", "../secret", "hosts", "/etc/hosts", "a\0b"])
def test_nothing_outside_an_asset_is_given_out(name, file, root, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (root / "secret").write_text("secret")
    os.symlink(tmp_path, root / "link")
    os.symlink(tmp_path / "secret", root / "one" / "linked")
    shelf = Shelf()
    assert shelf.get(root, name, file) is None
    assert shelf.get(root, "one", file) is None
    assert shelf.get(root, "one", "linked") is None
    shelf.close()


def test_a_copy_follows_the_file_that_changes(root):
    shelf = Shelf()
    (root / "one" / "poster.png").write_bytes(b"first")
    first = shelf.get(root, "one", "poster.png")
    assert shelf.get(root, "one", "poster.png") == first
    (root / "one" / "poster.png").write_bytes(b"second!")
    second = shelf.get(root, "one", "poster.png")
    assert open(second, "rb").read() == b"second!" and open(first, "rb").read() == b"first"
    assert shelf.downloads(root, "one") == [second]
    shelf.close()
