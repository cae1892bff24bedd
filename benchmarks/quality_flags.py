"""What the quality flags catch on two real screens: the picture of docs/user_guide/quality.md, and its numbers.

Run: .venv/bin/python benchmarks/quality_flags.py
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from _common import ROOT, data_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scvi_causal import data, metrics

WHOLE = {"counts": "library_size_full", "genes": "n_genes_full"}
COLOURS = {"pass": "#c8c8c8", "small (few counts or genes)": "#3b6fb6", "leaking (high mitochondrial share)": "#d1495b"}
SETTINGS = {
    "as published": {"preset": "paper"},
    "controls": {},
    "controls, by batch": {"batch_key": True},
}


def load(name: str) -> ad.AnnData:
    return ad.read_h5ad(data_file(name))


def shares(adata: ad.AnnData, columns: dict, batch: str) -> pd.DataFrame:
    """Percentage of cells with each flag, by setting."""
    rows = {}
    for name, setting in SETTINGS.items():
        keys = {"batch_key": batch} if setting.get("batch_key") else setting
        data.annotate_quality(adata, columns=columns, doublets=False, **keys)
        flags = [c for c in adata.obs if c.startswith("quality_")]
        row = {flag.removeprefix("quality_"): adata.obs[flag].mean() for flag in flags}
        rows[name] = row | {"fail": (adata.obs["quality"] == "fail").mean()}
    return (100 * pd.DataFrame(rows).T).round(1)


def draw_cells(ax, adata: ad.AnnData) -> None:
    obs = adata.obs
    small = obs["quality_low_counts"] | obs["quality_low_genes"]
    kind = np.select([obs["quality_high_mito"], small], list(COLOURS)[:0:-1], "pass")
    for name, colour in COLOURS.items():
        cells = kind == name
        ax.scatter(
            obs["library_size_full"][cells],
            100 * obs["p_mito"][cells],
            s=3,
            c=colour,
            lw=0,
            label=f"{name}: {cells.mean():.1%}",
            rasterized=True,
        )
    ax.set(
        xscale="log",
        xlabel="counts of the cell",
        ylabel="mitochondrial counts (%)",
        title="Papalexi 2021, by replicate",
    )
    ax.set_ylim(0, 13)
    ax.set_xticks([3000, 10_000, 30_000], ["3,000", "10,000", "30,000"])
    ax.minorticks_off()
    ax.legend(markerscale=4, frameon=False, fontsize=8, loc="upper right")


def draw_perturbations(ax, table: pd.DataFrame) -> None:
    table = table.sort_values("high_hb")
    colours = np.where(table.index == "control", "black", "#d1495b")
    ax.barh(np.arange(len(table)), 100 * table["high_hb"], color=colours)
    ax.set_yticks(np.arange(len(table)), table.index, fontsize=6)
    ax.set(xlabel="cells with the flag high_hb (%)", title="Norman 2019 (K562): an effect, not an artifact")


def main() -> None:
    papalexi, mcfaline, norman = (
        load(f) for f in ("papalexi21_thp1_eccite.h5ad", "mcfaline23_gbm.h5ad", "norman19_k562.h5ad")
    )
    print(shares(papalexi, WHOLE | {"mito": "p_mito"}, "batch").to_string(), "\n")
    print(shares(mcfaline, WHOLE, "cell_type").to_string(), "\n")
    data.annotate_quality(norman, columns=WHOLE, doublets=False)
    table = data.describe_quality(norman)
    print(table.round(3).to_string(), "\n")
    print_failing(papalexi)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_cells(left, papalexi)
    draw_perturbations(right, table)
    figure.savefig(ROOT / "docs" / "_static" / "quality_flags.png", dpi=110)


def print_failing(adata: ad.AnnData) -> None:
    """Are failing control cells other cells? Energy distance to passing ones in 20 components; and what is higher and lower in them."""
    x = metrics.log1p_normalize(adata.X, adata.obs["library_size_full"].to_numpy())
    control = (adata.obs["perturbation"] == "control").to_numpy()
    passing = control & (adata.obs["quality"] == "pass").to_numpy()
    z = metrics.fit_pca(x[control], 20).transform(x.toarray())
    for flag in ("low_counts", "low_genes", "high_mito"):
        failing = control & adata.obs[f"quality_{flag}"].to_numpy()
        order = np.random.default_rng(0).permutation(np.flatnonzero(passing))
        same = metrics.energy_distance(z[order[failing.sum() :]], z[order[: failing.sum()]])
        size = adata.obs["library_size_full"]
        de = metrics.differential_expression(x[failing], x[passing]).set_index(adata.var_names).sort_values("statistic")
        print(
            f"{flag}: {failing.sum()} control cells, median library {size[failing].median():.0f} against {size[passing].median():.0f}, "
            f"energy distance {metrics.energy_distance(z[passing], z[failing]):.2f} (passing among themselves {same:.2f}), "
            f"{int(de['significant'].sum())} genes differ; up {list(de.index[-4:])}, down {list(de.index[:4])}"
        )


if __name__ == "__main__":
    main()
