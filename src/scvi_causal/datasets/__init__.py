"""A real screen that ships inside the package, and a door to those on disk. Nothing is downloaded."""

from __future__ import annotations

from ._kang18 import kang18
from ._screens import list_screens, load_screen

__all__ = ["kang18", "list_screens", "load_screen"]
