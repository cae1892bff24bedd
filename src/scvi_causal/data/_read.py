"""One way to read a file, with errors that say what is wrong with the path or the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._messages import did_you_mean, listed

if TYPE_CHECKING:
    from anndata import AnnData


def read_h5ad(path: str | Path) -> AnnData:
    """Read an ``.h5ad`` file.

    Raises
    ------
    ValueError
        If there is no such file, with those that look like it, or it is no ``.h5ad`` file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name one .h5ad file.")
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else Path()
        names = sorted(p.name for p in folder.glob("*.h5ad"))
        raise ValueError(
            f"There is no file {path}.{did_you_mean(path.name, names)} The .h5ad files in {folder}: {listed(names) or 'none'}."
        )
    import anndata

    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as an .h5ad file ({message}). Write it with adata.write_h5ad(path)."
        ) from error
