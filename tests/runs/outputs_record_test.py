"""outputs.json: what it holds comes back, and no text in it can break a page."""

import pytest

from dreamfusion_jax.runs.outputs_record import (
    FILE,
    OutputsRecord,
    read_record,
    write_record,
)


def test_a_record_is_read_as_written(tmp_path):
    record = OutputsRecord(20, ("poster.png",), {"mesh.glb": "no surface"})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_a_record_of_before_has_nothing_missing(tmp_path):
    (tmp_path / FILE).write_text('{"step": 3, "files": ["mesh.glb"]}')
    assert read_record(tmp_path) == OutputsRecord(3, ("mesh.glb",), {})


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"step": 1e999, "files": []}', '{"step": 1, "files": 3}', '{"step": 1}'],
)
def test_a_malformed_record_counts_as_none(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    assert read_record(tmp_path) is None


def test_a_reason_is_always_text_in_utf_8(tmp_path):
    (tmp_path / FILE).write_text(r'{"step": 1, "files": [], "missing": {"a": "\ud800"}}')
    assert read_record(tmp_path).missing["a"].encode()
