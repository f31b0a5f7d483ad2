"""Starts the studio where a Hugging Face Space or a container expects it.

The environment variable STUDIO_PASSWORD is the password of the user 'studio', and required, since
the page can be reached from other machines; STUDIO_ROOT is the folder of the assets.
"""

import os
import sys

from dreamfusion_jax.__main__ import main

if __name__ == "__main__":
    root = os.environ.get("STUDIO_ROOT", "assets")
    port = os.environ.get("PORT", "7860")
    sys.exit(main(["studio", "--host=0.0.0.0", f"--port={port}", f"--root={root}"]))
