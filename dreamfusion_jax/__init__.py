"""DreamFusion in JAX: text-to-3D by Score Distillation Sampling (Poole et al., ICLR 2023).

  import dreamfusion_jax
  asset = dreamfusion_jax.text_to_3d("a red chair")

`text_to_3d`, `text_to_images` and `Asset` come from dreamfusion_jax.api, which is imported with JAX
at their first use, so that importing the package itself is fast.
"""

from typing import TYPE_CHECKING, Any

from dreamfusion_jax.runtime import process
from dreamfusion_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from dreamfusion_jax.api import Asset, text_to_3d, text_to_images

if process.started_as_module():  # before the command's own imports, which take seconds
    process.begin()

__version__ = "0.1.0"
__all__ = ["Asset", "UserError", "text_to_3d", "text_to_images"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dreamfusion_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
