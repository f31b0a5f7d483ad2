"""Times the viewer's images, while the camera moves and at rest.

python -m tests.benchmarks.view --workdir=workdir/a-red-chair
"""

import functools

from absl import app, flags, logging

from dreamfusion_jax.runtime.files import as_path
from dreamfusion_jax.viewer.renderer import Renderer, ViewSettings
from dreamfusion_jax.viewer.window import Window, pass_sizes
from dreamfusion_jax.viewer.workdir_watcher import WorkdirWatcher
from tests.benchmarks.measure import ceilings, median_ms

_WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 5, "images of each kind, of which the median is printed")
WINDOW = Window((0.5, -0.5, -0.5, 0.5), (2.75, 0.0, 0.0), 0.829, 720, 1280)  # from the front


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax logs every file.
    watcher = WorkdirWatcher(as_path(_WORKDIR.value))
    watcher.refresh()
    step, params = list(watcher.snapshot.scenes.items())[-1]
    renderer = Renderer(watcher.scene)
    renderer.compile(params)
    print(f"matrix products: {ceilings().gflops:.0f} GFLOP/s")
    for mode in ("albedo", "shaded"):
        settings = ViewSettings(mode, WINDOW, (1.0, 1.0, 1.0))
        sizes = pass_sizes((WINDOW.height, WINDOW.width), 512, renderer.moving_pixels(mode))
        for size in dict.fromkeys([sizes[0], (72, 128), (144, 256), (288, 512), (576, 1024)]):
            draw = functools.partial(renderer.draw, settings, size, params, step, lambda: True)
            median = median_ms(draw, _REPEATS.value)
            moving = ", the first size while moving" if size == sizes[0] else ""
            print(f"{mode}, {size[1]} x {size[0]}: {median:.0f} ms{moving}", flush=True)


if __name__ == "__main__":
    app.run(main)
