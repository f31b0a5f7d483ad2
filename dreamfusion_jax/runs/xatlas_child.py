"""The process in which xatlas unwraps: an .npz of vertices, faces, normals from stdin to stdout.

xatlas holds Python's lock, hears no signal and may crash, so the parent process waits outside. It
runs this file by its path: nothing of the package is imported, which would take seconds.
"""

import ctypes
import io
import os
import signal
import sys

import numpy as np
import xatlas

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main(size: int, padding: int) -> None:
    """Unwraps for a texture of `size` x `size` texels, with `padding` between charts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides.
    if sys.platform == "linux":  # no orphan goes on for minutes
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answer = os.dup(1)
    os.dup2(2, 1)  # What xatlas prints is not the answer.
    surface = np.load(io.BytesIO(sys.stdin.buffer.read()))
    atlas = xatlas.Atlas()
    atlas.add_mesh(surface["vertices"], surface["faces"], surface["normals"])
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, padding, True
    atlas.generate(pack_options=packing)
    source, faces, uv = atlas[0]
    result = io.BytesIO()
    np.savez(result, source=source, faces=faces, uv=uv)
    with open(answer, "wb") as file:
        file.write(result.getvalue())
    os._exit(0)  # The atlas's destructor may wait for its threads forever.


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
