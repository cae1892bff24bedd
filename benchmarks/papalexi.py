"""Knock-outs of Papalexi 2021 (THP-1, 25 genes): unseen perturbations, and unseen cells of seen ones.

    python benchmarks/papalexi.py unseen
    python benchmarks/papalexi.py seen

Unseen: 5 folds of perturbations; one half of the controls trains and is predicted from, effects are measured against the
other. Seen: half of the cells of every condition train, effects are those of the other half. A repetition is another split
and another seed of the models.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from _common import draw, fit, load, prior_file, say, write_page
from scipy.stats import wilcoxon

import scvi_causal
from scvi_causal import metrics

IFNG_AXIS = ["IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1"]
ALIAS = {"MARCH8": "MARCHF8"}
SETUP = {"size_factor_key": "library_size_full"}
GO = {"perturbation_features_key": "go"}
GRN = {"grn_key": "collectri"}  # by a name that is not taken by default
# name: class, further arguments of setup_anndata, arguments of the model
UNSEEN = {
    "ControlMean": (scvi_causal.ControlMean, {}, {}),
    "PerturbedMean": (scvi_causal.PerturbedMean, {}, {}),
    "LinearEffect, GO": (scvi_causal.LinearEffect, GO, {}),
    "NearestPerturbation, GO": (scvi_causal.NearestPerturbation, GO, {}),
    "SCCVAE, GO": (scvi_causal.SCCVAE, GO, {}),
    "SCCVAE, GO + CollecTRI": (scvi_causal.SCCVAE, GO | GRN, {}),
    "SCCVAE, GO + random network": (scvi_causal.SCCVAE, GO | GRN, {"graph": "random"}),
}
SEEN = {
    "ControlMean": (scvi_causal.ControlMean, {}, {}),
    "PerturbedMean": (scvi_causal.PerturbedMean, {}, {}),
    "Additive": (scvi_causal.Additive, {}, {}),
    "SCCVAE": (scvi_causal.SCCVAE, {}, {}),
    "SCCVAE, CollecTRI": (scvi_causal.SCCVAE, GRN, {}),
    "SCCVAE, refine_responses": (scvi_causal.SCCVAE, {}, {"refine_responses": True}),
}
CEILING = "noise ceiling"
COLUMNS = ["pearson_effect", "pearson_others", "mse_ratio"]
TEXT = {
    "unseen": """Five folds of 5 knock-outs that were never trained on, in several repetitions of folds, control halves and
seeds. `pearson_effect`: over the 299 genes, predicted from one control half, measured against the other;
`pearson_others`: the same without the knocked-out gene itself (9 of the 25 are measured), which a network with the gene as a
node lowers whatever its edges; `mse_ratio`: squared error of the mean over that of predicting no change; means over perturbations. `wins`: share of the 25
perturbations (averaged over repetitions) whose Pearson is higher than that of PerturbedMean, with the two-sided p of a
Wilcoxon test over perturbations; `wins others`, `wins MSE` the same for the other two. The features are 128 components of GO
annotation, the network is CollecTRI; the random one has the same numbers of regulators and targets. The noise ceiling is
one half of the cells of the perturbation as a prediction of the other half.""",
    "seen": """Half of the cells of every condition, controls too, train; effects are those of the other half. `pearson_effect`,
`pearson_others`, `mse_ratio`, `wins` as for unseen perturbations. The noise ceiling is the training half itself as a prediction of the other
half, without any model; Additive, for single perturbations the mean shift of the training cells, is close to it by
construction, and a model can come out above it by taking out noise.""",
}


def load_screen():
    """Screen with the features of its perturbations and the network registered."""
    adata, x, labels = load("papalexi21_thp1_eccite.h5ad")
    archive = np.load(prior_file("gene_embedding_go_svd128.npz"), allow_pickle=True)
    row = {gene: i for i, gene in enumerate(map(str, archive["genes"]))}
    tokens = np.array(sorted(set(labels) - {"control"}))
    known = [token for token in tokens if ALIAS.get(token, token) in row]
    matrix = np.array([archive["embedding"][row[ALIAS.get(token, token)]] for token in known])
    adata.uns["go"] = pd.DataFrame(matrix, known, [f"go_{i}" for i in range(matrix.shape[1])])
    grn = pd.read_csv(prior_file("grn_collectri_human.csv.gz"))
    adata.uns["collectri"] = grn.drop_duplicates(["source", "target"])
    if len(known) < len(tokens):
        say(f"without features: {sorted(set(tokens) - set(known))}")
    return adata, x, labels, tokens


def predict_and_score(name, case, adata, x, labels, targets, halves, seed) -> list[dict]:
    """One model on one split: scores of the targets it can predict.

    Parameters
    ----------
    halves
        Control cells that training saw, and those that effects are measured against.
    """
    model_class, setup, options = case
    options = options | ({"graph_seed": seed} if options.get("graph") == "random" else {})
    model, seconds = fit(model_class, adata, SETUP | setup, seed, **options)
    answer, rows = model.can_predict(list(targets))["predictable"], []
    source, reference = (x[half] for half in halves)
    is_test = adata.obs["split"].to_numpy() == "test"
    for target in targets:
        row = {"model": name, "perturbation": target, "seed": seed, "CPU-seconds": seconds}
        if answer[target]:
            observed = x[is_test & (labels == target)]
            predicted = draw(model, target, halves[0], seed)
            row |= metrics.score_counterfactual(observed, predicted, source, reference, distances=False)
            others = np.flatnonzero(adata.var_names != target)
            row["pearson_others"] = metrics.pearson_effect(observed, predicted, source, reference, genes=others)
        rows.append(row)
    return rows


def unseen(adata, x, labels, tokens, seed: int) -> list[dict]:
    """One repetition of five folds."""
    rows, rng = [], np.random.default_rng(seed)
    halves = metrics.split_controls(labels == "control", seed=seed)
    for i, fold in enumerate(np.array_split(rng.permutation(tokens), 5)):
        held_out = np.isin(labels, fold)
        adata.obs["split"] = np.where(held_out | np.isin(np.arange(len(labels)), halves[1]), "test", "train")
        for name, case in UNSEEN.items():
            rows += predict_and_score(name, case, adata, x, labels, fold, halves, seed)
        for token in fold:
            cells = [x[labels == token], x[halves[0]], x[halves[1]]]
            score = metrics.noise_ceiling(*cells, seed, distances=False)
            others = np.flatnonzero(adata.var_names != token)
            rest = metrics.noise_ceiling(*(c[:, others] for c in cells), seed, distances=False)
            score["pearson_others"] = rest["pearson_effect"]
            rows.append({"model": CEILING, "perturbation": token, "seed": seed, **score})
        say(f"repetition {seed}, fold {i}: " + summary(rows))
    return rows


def seen(adata, x, labels, tokens, seed: int) -> list[dict]:
    """One repetition with half of the cells of each condition held out."""
    train, test = metrics.split_controls(np.ones(len(labels), dtype=bool), labels, seed=seed)
    adata.obs["split"] = np.where(np.isin(np.arange(len(labels)), test), "test", "train")
    halves, rows = [half[labels[half] == "control"] for half in (train, test)], []
    for name, case in SEEN.items():
        rows += predict_and_score(name, case, adata, x, labels, tokens, halves, seed)
    for token in tokens:
        first, second = (x[half[labels[half] == token]] for half in (train, test))
        controls = (x[halves[0]], x[halves[1]])
        score = metrics.score_counterfactual(second, first, *controls, distances=False)
        others = np.flatnonzero(adata.var_names != token)
        score["pearson_others"] = metrics.pearson_effect(second, first, *controls, genes=others)
        rows.append({"model": CEILING, "perturbation": token, "seed": seed, **score})
    say(f"repetition {seed}: " + summary(rows))
    return rows


def summary(rows: list[dict]) -> str:
    """Pearson of each model so far."""
    mean = pd.DataFrame(rows).groupby("model", sort=False)["pearson_effect"].mean()
    return ", ".join(f"{name} {value:.3f}" for name, value in mean.items())


def tabulate(table: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """Means over perturbations, and wins over PerturbedMean, paired by perturbation."""
    of_token = table.groupby(["model", "perturbation"])[COLUMNS].mean()
    out = of_token.groupby("model").mean().reindex(order)
    spread = table.groupby(["model", "seed"])["pearson_effect"].mean().groupby("model").std()
    out.insert(1, "sd over repetitions", spread.reindex(order))
    for column, sign, label in (
        ("pearson_effect", 1, "wins"),
        ("pearson_others", 1, "wins others"),
        ("mse_ratio", -1, "wins MSE"),
    ):
        values = sign * of_token[column].unstack("model")
        gain = values.sub(values["PerturbedMean"], axis=0).drop(columns="PerturbedMean").dropna()
        out[label] = (gain > 0).mean()
        if len(gain) > 5:
            out[f"p {label}"] = gain.apply(lambda g: wilcoxon(g).pvalue)
    out["CPU-seconds"] = table.groupby("model")["CPU-seconds"].mean()
    return out


def main() -> None:
    """Run all repetitions of one question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=["unseen", "seen"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    options = parser.parse_args()
    screen = load_screen()
    ask = unseen if options.question == "unseen" else seen
    rows = []
    for i, seed in enumerate(options.seeds):
        rows += ask(*screen, seed)
        report(options.question, rows, options.seeds[: i + 1])  # there is something to read before all is done


def report(question: str, rows: list[dict], seeds: list[int]) -> None:
    """Write the page and every number."""
    table = pd.DataFrame(rows)
    order = [*(UNSEEN if question == "unseen" else SEEN), CEILING]
    axis = table[table["perturbation"].isin(IFNG_AXIS)]
    single = table.groupby(["perturbation", "model"])["pearson_others"].mean().unstack("model")[order]
    parts = [
        (TEXT[question], None),
        ("## All 25 perturbations", tabulate(table, order)),
        (f"## The IFN-gamma axis: {', '.join(IFNG_AXIS)}", tabulate(axis, order)),
        ("## `pearson_others` of every perturbation", single),
    ]
    title = f"Papalexi: {'unseen perturbations' if question == 'unseen' else 'seen perturbations, unseen cells'}"
    write_page(f"papalexi_{question}", title, parts, seeds, table)


if __name__ == "__main__":
    main()
