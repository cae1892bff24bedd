"""``scvi-causal demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._shared import add_screen_options, positive, quiet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def add_command(commands) -> None:
    """Add the command to the parser."""
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
        "--holdout",
        metavar="WHAT",
        help="COLUMN=VALUE: the perturbed cells of this context are never trained on, e.g. 'cell_type=NK'; or a perturbation "
        "that is never trained on, e.g. 'STAT1' or 'STAT1+JAK2'",
    )
    add_screen_options(demo)
    demo.add_argument("--out", type=Path, default=Path("scvi_causal_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--max-epochs", type=positive, metavar="N", help="epochs of SCCVAE (default: its own)")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace, command: str, say: Callable[[str], None]) -> int:
    say("Loading ...")
    with quiet():
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
        run_demo(options, say)
    return 0
