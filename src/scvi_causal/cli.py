"""Command line: ``scvi-causal demo``. Parses and prints; the work is in ``_demo``, imported only when it is asked for."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Parameters
    ----------
    argv
        Arguments without the name of the program; ``None`` takes those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments, shlex.join(["scvi-causal", *argv]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scvi-causal", description="Counterfactual single-cell expression under perturbations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    return parser


def _add_demo(commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="train SCCVAE and the simple baselines on a screen with something held out; table, figures, report",
        description="Trains SCCVAE and the simple baselines on a screen from which something is held out, predicts it, and "
        "writes a table with the noise ceiling, figures, an .h5ad and a report. Without --data it runs on an embedded "
        "example: interferon-beta in blood cells, the stimulated CD4 T cells held out.",
        epilog="example: scvi-causal demo --data screen.h5ad --perturbation-key gene --control non-targeting --holdout STAT1",
    )
    demo.add_argument(
        "--data", type=Path, metavar="FILE", help="an .h5ad file, counts in X (default: the embedded example)"
    )
    demo.add_argument(
        "--perturbation-key", default="perturbation", metavar="COLUMN", help="obs column (default: %(default)s)"
    )
    demo.add_argument(
        "--control", nargs="+", default=["control"], metavar="LABEL", help="control label(s) (default: control)"
    )
    demo.add_argument(
        "--holdout",
        metavar="WHAT",
        help="COLUMN=VALUE: the perturbed cells of this context are never trained on, e.g. 'cell_type=NK'; or a perturbation "
        "that is never trained on, e.g. 'STAT1' or 'STAT1+JAK2'",
    )
    demo.add_argument(
        "--separator", default="+", help="joins the tokens of a combination; '' never splits (default: +)"
    )
    demo.add_argument("--layer", help="layer to use instead of X")
    demo.add_argument("--batch-key", metavar="COLUMN", help="obs column with the batch")
    demo.add_argument(
        "--covariate-key", nargs="+", default=[], metavar="COLUMN", help="obs columns that are held fixed"
    )
    demo.add_argument(
        "--size-factor-key", metavar="COLUMN", help="obs column with the full library, for cut gene panels"
    )
    demo.add_argument("--grn-key", metavar="KEY", help="key in uns of a prior network: source, target[, weight]")
    demo.add_argument("--features-key", metavar="KEY", help="key in uns or varm with features of the perturbations")
    demo.add_argument("--out", type=Path, default=Path("scvi_causal_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--max-epochs", type=_positive, metavar="N", help="epochs of SCCVAE (default: its own)")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    demo.set_defaults(run=_run_demo)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _run_demo(arguments: argparse.Namespace, command: str) -> int:
    _say("Loading ...")
    with _quiet():
        from scvi_causal._demo import DemoOptions, run_demo

        options = DemoOptions(
            data=arguments.data,
            holdout=arguments.holdout,
            out=arguments.out,
            perturbation_key=arguments.perturbation_key,
            control=tuple(arguments.control),
            separator=arguments.separator or None,
            layer=arguments.layer,
            batch_key=arguments.batch_key,
            covariate_keys=tuple(arguments.covariate_key),
            size_factor_key=arguments.size_factor_key,
            grn_key=arguments.grn_key,
            features_key=arguments.features_key,
            max_epochs=arguments.max_epochs,
            seed=arguments.seed,
            command=command,
        )
        try:
            run_demo(options, _say)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _quiet() -> Iterator[None]:
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


if __name__ == "__main__":
    sys.exit(main())
