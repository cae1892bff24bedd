"""Command line: ``scvi-causal demo | benchmark``. Parses, prints and turns errors into one line; commands are in ``_cli``."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from ._cli import _benchmark, _demo

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Parameters
    ----------
    argv
        Arguments without the name of the program; ``None`` takes those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments, shlex.join(["scvi-causal", *argv]), _say)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scvi-causal", description="Counterfactual single-cell expression under perturbations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _demo.add_command(commands)
    _benchmark.add_command(commands)
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
