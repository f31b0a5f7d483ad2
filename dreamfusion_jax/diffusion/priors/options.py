"""Options of the frozen text-to-image model: which one, and its number formats."""

from __future__ import annotations

import dataclasses

from dreamfusion_jax.runtime.settings import setting


@dataclasses.dataclass(frozen=True)
class PriorOptions:
    """Names the frozen text-to-image model."""

    prior: str = setting(
        "toybox",
        "'toybox' (embedded), or a Stable Diffusion: a folder or a hub id in the diffusers layout,"
        " or a checkpoint that is one .safetensors file",
    )
    revision: str = setting("", "branch, tag or commit of a hub id (empty: its main branch)")
    variant: str = setting(
        "", "which of several precisions to read, such as fp16 (empty: the full one if present)"
    )
    prediction_type: str = setting(
        "auto",
        "what its network predicts (auto: what its files say; of one-file checkpoints of 2.x, which"
        " say nothing, v_prediction at 768 pixels, so give epsilon for one of the 512-pixel base)",
        choices=("auto", "epsilon", "v_prediction", "sample"),
    )
    lora: str = setting(
        "",
        "LoRA files to merge into it, each with a colon and its scale if that is not 1, with commas"
        " between them: a.safetensors:0.8,b.safetensors",
    )
    embedding: str = setting(
        "",
        "files of a textual inversion, with commas between them: words that prompts may then use",
    )
    prior_dtype: str = setting(
        "auto",
        "number format of the prior's U-Net (auto: float16 on GPU, float32 on TPU and CPU; guidance"
        " multiplies rounding errors, and bfloat16's are up to a third of its direction)",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    vae_dtype: str = setting(
        "auto",
        "number format of its autoencoder, whose errors nothing multiplies (auto: bfloat16 on GPU"
        " and TPU, float32 on CPU)",
        choices=("auto", "float32", "bfloat16"),
    )
