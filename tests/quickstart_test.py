"""The quickstart notebook runs from its top to its bottom, on a run of the smallest kind."""

from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "quickstart.ipynb"
TINY = {
    **{"steps": 2, "width": 8, "depth": 1, "proposal_samples": 4, "fine_samples": 4},
    **{"poster_size": 8, "sheet_size": 8, "turntable_size": 8, "turntable_frames": 2},
    **{"mesh_resolution": 12, "texture_size": 32},
}


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def kinds(cell) -> set[str]:
    """What a cell's outputs are, as MIME types."""
    return {kind for output in cell.outputs for kind in output.get("data", {})}


def test_the_stored_outputs_are_of_a_whole_run_and_small(notebook):
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert "1000/1000" in str(notebook.cells), "the run was of the defaults"
    assert "Traceback" not in str(notebook.cells) and "/home/" not in str(notebook.cells)


def test_every_cell_runs_and_shows_what_it_showed(notebook, tiny_prior, tmp_path, monkeypatch):
    (given,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    (sampled,) = [c for c in notebook.cells if "samples=4" in c.source]
    shown = [kinds(cell) for cell in notebook.cells if cell.cell_type == "code"]
    settings = {**TINY, "prior": str(tiny_prior)}
    given.source += f"\nsettings = {settings!r}"
    sampled.source = sampled.source.replace("samples=4", "samples=4, prior=settings['prior']")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert [kinds(cell) for cell in notebook.cells if cell.cell_type == "code"] == shown
    assert (tmp_path / "chair.glb").exists()
    assert (tmp_path / "workdir" / "quickstart" / "mesh.glb").exists()
