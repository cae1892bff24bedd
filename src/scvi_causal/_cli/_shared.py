"""What commands have in common: options that describe a screen, and quiet libraries."""

from __future__ import annotations

import argparse
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def add_screen_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where in a file things are; names as for ``setup_anndata``."""
    parser.add_argument(
        "--perturbation-key", default="perturbation", metavar="COLUMN", help="obs column (default: %(default)s)"
    )
    parser.add_argument(
        "--control", nargs="+", default=["control"], metavar="LABEL", help="control label(s) (default: control)"
    )
    parser.add_argument(
        "--separator", default="+", help="joins the tokens of a combination; '' never splits (default: +)"
    )
    parser.add_argument("--layer", help="layer to use instead of X")
    parser.add_argument("--batch-key", metavar="COLUMN", help="obs column with the batch")
    parser.add_argument(
        "--covariate-key", nargs="+", default=[], metavar="COLUMN", help="obs columns that are held fixed"
    )
    parser.add_argument(
        "--size-factor-key", metavar="COLUMN", help="obs column with the full library, for cut gene panels"
    )
    parser.add_argument("--grn-key", metavar="KEY", help="key in uns of a prior network: source, target[, weight]")
    parser.add_argument("--features-key", metavar="KEY", help="key in uns or varm with features of the perturbations")


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what only concerns developers of the libraries below off the screen; warnings about the data stay."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric", "scvi")]
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        for message in (".*does not have many workers", ".*number of training batches", ".*GPU available but not used"):
            warnings.filterwarnings("ignore", message=message)
        import scvi  # noqa: F401  # configures these loggers, and so would undo what comes next

        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
