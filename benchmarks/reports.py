"""The reports of docs/benchmarks: every model of the package on five screens, with the simple baselines and the noise ceiling.

    python benchmarks/reports.py papalexi            # unseen knock-outs
    python benchmarks/reports.py papalexi_seen       # held-out cells of seen knock-outs
    python benchmarks/reports.py kang                # a cell type left out
    python benchmarks/reports.py mcfaline            # a knock-down in a line where it was never seen
    python benchmarks/reports.py norman              # unseen combinations
    python benchmarks/reports.py gasperini           # held-out cells with one or several guides

The same as ``scvi-causal benchmark FILE --task ...``, with the features of unseen perturbations put into the AnnData. What is
done stays in ``benchmarks/runs/<screen>``: a run that was stopped goes on, and ``peers/run.py`` adds foreign models to it.
"""

from __future__ import annotations

import argparse
import sys

from _common import ROOT, say
from _screens import BASELINES, SETTINGS, SIZE_FACTOR, cradle_vae, gpo_vae, graph_vci, load_screen

from scvi_causal import benchmark

MODELS = ["SCCVAE", "SAMSVAE", "CRADLEVAE", "GPOVAE", "GIM", "VCI", "GraphVCI"]
# what a screen does not have, and the model needs
WITH_MORE = {"GraphVCI": graph_vci, "CRADLEVAE": cradle_vae, "GPOVAE": gpo_vae}


def main() -> None:
    """Run what is not done, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("screen", choices=list(SETTINGS))
    parser.add_argument("--models", nargs="*", default=MODELS, help="beside the baselines")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    name = options.screen
    named = [*options.models, *BASELINES[name]]
    models = {model: WITH_MORE[model](name) if model in WITH_MORE else model for model in named}
    result = benchmark.run(
        load_screen(name),
        models=models,
        out=ROOT / "benchmarks" / "runs" / name,
        size_factor_key=SIZE_FACTOR,
        seeds=tuple(options.seeds),
        command=" ".join(["python", "benchmarks/reports.py", *sys.argv[1:]]),
        progress=say,
        report=False,
        **SETTINGS[name],
    )
    report = result.write_report(ROOT / "docs" / "benchmarks", name=name)
    report.html.unlink()  # the page is in the documentation; the one file to send around is not for a repository
    result.table().to_csv(ROOT / "docs" / "benchmarks" / f"{name}.csv", float_format="%.5g")
    say(f"wrote docs/benchmarks/{name}.md. {result.verdict()}")


if __name__ == "__main__":
    main()
