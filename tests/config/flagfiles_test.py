"""Flagfiles mean what people meant who wrote them."""

import pytest

from dreamfusion_jax.config.flagfiles import expand


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ('--prompt="a red chair"', "--prompt=a red chair"),
        ("--prompt='a red chair'  # mine", "--prompt=a red chair"),
        ("--prompt=a red chair", "--prompt=a red chair"),
        ("--prompt=a sign #1", "--prompt=a sign #1"),
        ('--prompt=it\'s a "sign"', '--prompt=it\'s a "sign"'),
        ('--prompt="it" and "that"', '--prompt="it" and "that"'),
        ('--prompt="a # b"', "--prompt=a # b"),
        ("--steps=300   # enough", "--steps=300"),
        ("--steps=300 #", "--steps=300"),
        ("--wandb", "--wandb"),
    ],
)
def test_quotes_and_comments_are_no_part_of_a_value(line, flag, tmp_path):
    path = tmp_path / "a.cfg"
    path.write_bytes(f"\ufeff{line}\r\n\r\n# a comment\n  // another\n".encode())
    assert expand(["main", f"--flagfile={path}", "x"]) == ["main", flag, "x"]


def test_flagfiles_within_flagfiles_keep_their_order(tmp_path):
    (tmp_path / "a.cfg").write_text(f"--a=1\n--flagfile={tmp_path / 'b.cfg'}\n--c=3\n")
    (tmp_path / "b.cfg").write_text("--b=2\n")
    arguments = ["-flagfile", f"{tmp_path / 'a.cfg'}", "--", "--flagfile=x"]
    assert expand(arguments) == ["--a=1", "--b=2", "--c=3", "--", "--flagfile=x"]


@pytest.mark.parametrize("text", [None, "--flagfile={path}\n", "\udcff"])
def test_a_file_that_cannot_be_read_is_named(text, tmp_path):
    path = tmp_path / "a.cfg"
    if text:
        path.write_bytes(text.format(path=path).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.cfg"):
        expand([f"--flagfile={path}"])
