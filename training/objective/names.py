"""Names of the tensors of a `DenoiseTower` in checkpoint files."""

from __future__ import annotations

from ...uniworld_core.families.uniworld_v1.checkpoint import DENOISER_NAMES, PROJECTOR_NAMES
from ...uniworld_core.loading.names import Names

# (prefix in the published files, prefix in `DenoiseTower`)
TOWER_NAMES = Names(
    (
        *((in_file, f"dit.transformer.{rest}") for in_file, rest in DENOISER_NAMES.prefixes),
        *((in_file, f"projectors.{rest}") for in_file, rest in PROJECTOR_NAMES.prefixes),
    )
)
