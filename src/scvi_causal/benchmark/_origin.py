"""Where numbers come from: command, versions, commit. Nothing about the machine."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import scvi_causal

PACKAGES = (
    "scvi-causal", "scvi-tools", "torch", "lightning", "anndata", "scanpy", "scikit-learn", "scipy", "numpy", "pandas", "ray",
)  # fmt: skip


def versions(engine: str = "inprocess") -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        if package == "ray" and engine != "ray":
            continue
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the library, with a note if it was changed since; ``None`` if it is not run from its repository."""
    folder = Path(scvi_causal.__file__).parent
    # a virtual environment may lie within somebody's repository, which is not that of the library
    if not _git(folder, "ls-files", "--", "__init__.py"):
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    found = _git(folder, "log", "-1", "--format=%h", "--", ".")
    return found + (" with uncommitted changes" if changed else "") if found else None


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError):  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def now() -> str:
    """Time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def call_text(data: str, arguments: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The Python call with the arguments that are not as by default.

    Examples
    --------
    >>> from scvi_causal.benchmark._origin import call_text
    >>> call_text("adata", {"task": "seen", "seeds": [0]}, {"task": "unseen", "seeds": (0,)})
    "scvi_causal.benchmark.run(adata, task='seen')"
    """
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
        if (list(value) if isinstance(value, tuple) else value)
        != (list(defaults.get(name)) if isinstance(defaults.get(name), tuple) else defaults.get(name))
    }
    return f"scvi_causal.benchmark.run({', '.join([data, *(f'{k}={v!r}' for k, v in given.items())])})"
