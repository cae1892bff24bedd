"""GEARS (cell-gears): graph networks over genes (co-expression) and over perturbations (shared GO terms).

Settings of its documentation: 20 epochs in batches of 32, hidden size 64, the epoch chosen on a tenth of the perturbations.
GEARS returns the mean of its predictions for 300 control cells; here it predicts every control cell given.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from _exchange import one_in_ten, pairs_with_ctrl, serve
from gears import GEARS, PertData
from gears.utils import create_cell_graph_for_prediction, get_GO_edge_list
from torch_geometric.loader import DataLoader


def fit(train, job):
    """Build both graphs, then train."""
    random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002 - GEARS draws from the global state
    torch.manual_seed(job.seed)
    data = _data(train, job)
    model = GEARS(data, device="cpu")
    model.model_initialize(hidden_size=64)
    model.train(epochs=job.options.get("epochs", 20))
    return model


def _data(train, job) -> PertData:
    """GEARS' view of the training cells; perturbations without GO terms have no place in its graph."""
    folder = Path("data")  # GEARS also writes to ./data, whatever it is told
    folder.mkdir()
    # found here, the dictionary is not downloaded
    (folder / "gene2go_all.pkl").write_bytes(pickle.dumps(job.gene2go))
    # perturbations without cells are in no condition: the graph needs their names
    (folder / "genes.pkl").write_bytes(pickle.dumps([*train.var_names, *job.tokens]))
    labels = train.obs["perturbation"].astype(str).to_numpy()
    known = np.array([all(token in job.gene2go for token in label.split("+") if token != "ctrl") for label in labels])
    train, labels = train[known], labels[known]
    conditions = pairs_with_ctrl(labels)
    adata = ad.AnnData(
        train.X.tocsr(),
        obs=pd.DataFrame({"condition": conditions, "cell_type": "all"}, index=train.obs_names),
        var=pd.DataFrame({"gene_name": train.var_names.to_numpy()}, index=train.var_names),
    )
    data = PertData(str(folder), gene_set_path=str(folder / "genes.pkl"), default_pert_graph=False)
    data.new_data_process("screen", adata=adata)
    validate = one_in_ten(conditions, job.seed)
    # its own split without a test set leaves no perturbation for validation where there are fewer than ten
    data.split, data.seed = "no_test", job.seed
    data.set2conditions = {"train": sorted(set(conditions) - set(validate)), "val": validate}
    data.get_dataloader(batch_size=32, test_batch_size=128)
    # found here, the edges are not computed in 25 processes, which takes as many times the memory
    terms = {gene: job.gene2go[gene] for gene in data.pert_names}
    edges = [edge for gene in terms for edge in get_GO_edge_list((gene, terms))]
    table = pd.DataFrame(edges, columns=["source", "target", "importance"])
    table.to_csv(folder / "go_essential_screen.csv", index=False)
    return data


def predict(model, source, targets, job):
    """Every control cell under every target."""
    network, x, found = model.best_model.eval(), source.X.toarray(), {}
    for target in targets:
        tokens = target.split("+")
        nodes = [model.pert_list.index(token) for token in tokens]
        cells = [create_cell_graph_for_prediction(row, nodes, tokens) for row in x]
        with torch.no_grad():
            found[target] = np.concatenate([network(batch).numpy() for batch in DataLoader(cells, 300)])
    return found


serve(fit, predict)
