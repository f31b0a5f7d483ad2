"""`python -m dreamfusion_jax` and the console script: a list of commands, each run by its name."""

import runpy

import pytest

from dreamfusion_jax import __main__ as commands


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]], ids=str)
def test_commands_are_listed_with_what_they_do(arguments, capsys):
    assert commands.main(arguments) == 0
    stdout = capsys.readouterr().out
    for name in commands.COMMANDS:
        assert f" {name} " in stdout and commands.summary(name) in stdout
    assert all(len(commands.summary(name)) > 20 for name in commands.COMMANDS)


def test_a_command_is_run_with_its_own_flags(monkeypatch):
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **how: ran.append((name, how)))
    monkeypatch.setattr(commands.sys, "argv", [])
    assert commands.main(["render", "--workdir=there"]) == 0
    assert ran == [("dreamfusion_jax.render", {"run_name": "__main__", "alter_sys": True})]
    assert commands.sys.argv == ["dreamfusion_jax.render", "--workdir=there"]


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert commands.main(["rendr"]) == 2
    assert capsys.readouterr().err == "Error: There is no command 'rendr'; did you mean render?\n"
