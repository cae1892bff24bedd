"""Screens that lie in a folder of the user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import anndata

from scvi_causal.data._messages import did_you_mean, listed

if TYPE_CHECKING:
    from anndata import AnnData

_VARIABLE = "SCVI_CAUSAL_DATA"
_SUFFIX = ".h5ad"


def _folder(folder: str | os.PathLike[str] | None) -> Path:
    given = folder if folder is not None else os.environ.get(_VARIABLE)
    if not given:
        raise ValueError(
            f"where are the screens? Set the environment variable {_VARIABLE} to the folder with the {_SUFFIX} files, or "
            "pass `folder`. The data set inside the package is scvi_causal.datasets.kang18()."
        )
    path = Path(given).expanduser()
    if not path.is_dir():
        origin = "`folder`" if folder is not None else f"the environment variable {_VARIABLE}"
        raise ValueError(f"{origin} names {str(path)!r}, which is no folder.")
    return path


def list_screens(folder: str | os.PathLike[str] | None = None) -> list[str]:
    """Names that :func:`load_screen` takes: the ``.h5ad`` files of the folder.

    Parameters
    ----------
    folder
        Folder with the files; the environment variable ``SCVI_CAUSAL_DATA`` by default.

    Returns
    -------
    Sorted names without the ending.

    Raises
    ------
    ValueError
        If no folder is given, or it does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from scvi_causal.datasets import list_screens
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     list_screens(folder)
    []
    """
    return sorted(path.stem for path in _folder(folder).glob(f"*{_SUFFIX}"))


def load_screen(name: str, folder: str | os.PathLike[str] | None = None) -> AnnData:
    """Read a screen from the folder that ``SCVI_CAUSAL_DATA`` names.

    Parameters
    ----------
    name
        File name, with or without ``.h5ad``, or the beginning of one, as long as only one file begins so.
    folder
        Folder with the files; the environment variable ``SCVI_CAUSAL_DATA`` by default.

    Returns
    -------
    The AnnData as it lies in the file.

    Raises
    ------
    ValueError
        If no folder is given, or it does not hold exactly one such screen.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from scvi_causal.data import simulate_screen
    >>> from scvi_causal.datasets import load_screen
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     simulate_screen(n_control=10, seed=0).adata.write_h5ad(Path(folder) / "mine.h5ad")
    ...     load_screen("mine", folder).n_vars
    50
    """
    path = _folder(folder)
    known = list_screens(path)
    stem = name.removesuffix(_SUFFIX)
    found = [stem] if stem in known else [other for other in known if stem and other.startswith(stem)]
    if len(found) > 1:
        raise ValueError(f"{name!r} is the beginning of several screens: {listed(found)}. Give more of the name.")
    if not found:
        held = listed(known) if known else f"no {_SUFFIX} file"
        raise ValueError(
            f"there is no screen {name!r} in {str(path)!r}, which holds {held}.{did_you_mean(stem, known)}"
        )
    return anndata.read_h5ad(path / f"{found[0]}{_SUFFIX}")
