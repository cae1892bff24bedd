"""The work behind ``scvi-causal demo``: one screen, one held-out question, all models on it, a table and pictures.

It knows the public API only, and reports through a callback: nothing here prints.
"""

from ._options import DemoOptions
from ._run import run_demo

__all__ = ["DemoOptions", "run_demo"]
