import numpy as np
import pytest
from PIL import Image

from dreamfusion_jax.runs import progress_strip
from dreamfusion_jax.runtime.png import encode_png


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "previews").mkdir()
    return tmp_path


def add(workdir, step, sides=(0,), size=16):
    """Writes a preview whose sides are plain gray."""
    image = np.concatenate([np.full((size, size, 3), side, np.uint8) for side in sides], axis=1)
    (workdir / "previews" / f"step_{step:06d}.png").write_bytes(encode_png(image))


def test_columns_are_steps_and_rows_are_sides(workdir):
    add(workdir, 1200, (30, 40))
    add(workdir, 20, (10, 20))
    strip = progress_strip.progress_strip(workdir)
    cells = strip[-32:]
    assert strip.shape[1] == 32 and strip.dtype == np.uint8
    assert (cells[:16, :16] == 10).all() and (cells[16:, :16] == 20).all()
    assert (cells[:16, 16:] == 30).all() and (cells[16:, 16:] == 40).all()
    for heading in (strip[:-32, :16], strip[:-32, 16:]):
        assert heading.min() < 128 and heading.max() == 255, "the step is written above"


def test_eight_evenly_spaced_previews_with_first_and_last(workdir):
    for step in range(1, 101):
        add(workdir, step, (step,), 8)
    strip = progress_strip.progress_strip(workdir)
    chosen = strip[-1, 4::8, 0].astype(int)
    assert len(chosen) == 8 and chosen[0] == 1 and chosen[-1] == 100
    assert np.ptp(np.diff(chosen)) <= 1


def test_other_files_damaged_images_and_sizes_are_handled(workdir):
    add(workdir, 1, (50,), 8)
    add(workdir, 2, (60, 70), 400)
    (workdir / "previews" / "step_000003.png").write_bytes(b"torn")
    (workdir / "previews" / "notes.txt").write_text("not ours")
    strip = progress_strip.progress_strip(workdir)
    assert strip.shape[1] == 2 * 128 and set(np.unique(strip[-256:])) >= {50, 60, 70}


def test_without_previews_the_strip_is_white(tmp_path):
    strip = progress_strip.progress_strip(tmp_path)
    assert (strip == 255).all() and Image.fromarray(strip).width == 128
