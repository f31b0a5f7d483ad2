"""A whole run whose work folder is in a bucket: the real client against an emulator on loopback.

Skipped unless both are there: pip install gcsfs gcp-storage-emulator
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gcsfs", "gcp_storage_emulator"))),
    reason="needs gcsfs and gcp-storage-emulator",
)
SETTINGS = (
    *("--prompt=a red chair", "--field=image", "--image_size=8", "--preview_size=8"),
    *("--checkpoint_every=5", "--log_every=1", "--compilation_cache=none"),
)
SERVER = """
import sys
from gcp_storage_emulator.server import create_server
create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


@pytest.fixture(scope="module")
def bucket():
    """Environment variables that lead to a bucket named "bucket", and its objects' names."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.DEVNULL)
    address = f"http://localhost:{port}"
    listing = f"{address}/storage/v1/b/bucket/o"

    def objects():
        with urllib.request.urlopen(listing) as answer:
            return {item["name"]: item["mediaLink"] for item in json.load(answer).get("items", [])}

    for _ in range(100):
        try:
            objects()
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    yield (
        {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs: pictures, metrics, the lock
            "TENSORSTORE_GCS_HTTP_URL": address,  # Orbax: arrays
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "FSSPEC_GS_TOKEN": "anon",
            "FSSPEC_GCS_TOKEN": "anon",
            # It would ask Google for the bucket's kind, and wait for its answer.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        },
        objects,
    )
    server.kill()


def read(link):
    with urllib.request.urlopen(link) as answer:
        return answer.read()


def test_a_run_in_a_bucket_is_written_and_continued_there(bucket, tiny_prior, tmp_path):
    environment, objects = bucket

    def run(*arguments):
        command = [sys.executable, "-m", "dreamfusion_jax.main", *SETTINGS, *arguments]
        command += [f"--prior={tiny_prior}", "--workdir=gs://bucket/assets/chair"]
        result = subprocess.run(
            command,
            env={**os.environ, **environment, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    run("--steps=10")
    links = objects()
    for name in ("config.json", "picture.png", "comparison.png", "preview.png", "outputs.json"):
        assert f"assets/chair/{name}" in links, sorted(links)
    assert any(name.startswith("assets/chair/tensorboard/events") for name in links)
    assert any(name.startswith("assets/chair/checkpoints/10/state/") for name in links)
    assert "assets/chair/.lock" not in links, "given back"
    assert read(links["assets/chair/picture.png"]).startswith(b"\x89PNG")
    assert not list(tmp_path.iterdir()), "nothing was left here"

    stdout = run("--steps=20")
    assert "Continuing in gs://bucket/assets/chair after step 10." in stdout
    lines = read(objects()["assets/chair/metrics.jsonl"]).splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    assert "is finished" in run("--steps=20")
