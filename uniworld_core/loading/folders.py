"""The folders of a model, given by path or by the name of a shipped model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UniWorldError
from .shipped import shipped_model


@dataclass(frozen=True)
class ModelFolders:
    """The folders with the files of a model.

    Attributes:
        checkpoint: the checkpoint, whose configuration determines the family.
        flux: a FLUX.1-dev folder in diffusers layout, for families that use one.
        siglip: a SigLIP folder, for families that use one.
    """

    checkpoint: Path
    flux: Path | None = None
    siglip: Path | None = None


def find_folders(
    checkpoint: str | Path, flux: str | Path | None = None, siglip: str | Path | None = None
) -> ModelFolders:
    """Resolve the folders of `UniWorld.from_pretrained`. Names of shipped models are replaced by their folders.

    Raises:
        UniWorldError: a folder does not exist.
    """
    shipped = shipped_model(str(checkpoint))
    if shipped is not None:
        checkpoint, flux, siglip = shipped.checkpoint, flux or shipped.flux, siglip or shipped.siglip
    if (lent := shipped_model(str(flux))) is not None:
        flux = lent.flux
    if (lent := shipped_model(str(siglip))) is not None:
        siglip = lent.siglip
    folders = ModelFolders(Path(checkpoint), Path(flux) if flux else None, Path(siglip) if siglip else None)
    for what, folder in vars(folders).items():
        if folder is not None and not folder.is_dir():
            raise UniWorldError(
                f"The {what} folder {folder} does not exist: give the folder that holds the model's files."
            )
    return folders
