"""Scouter (scouter-learn): a network from a control cell and the sum of its perturbations' embeddings to a perturbed cell.

The embeddings are the features of the job; its authors use text embeddings of gene descriptions. All settings are Scouter's
own: 40 epochs, stopped after 5 without progress on a tenth of the perturbations.
"""

from __future__ import annotations

import random

import anndata as ad
import numpy as np
import pandas as pd
import torch
from _exchange import one_in_ten, pairs_with_ctrl, serve
from scouter import Scouter, ScouterData


def fit(train, job):
    """Rank genes, split perturbations, train."""
    random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002 - Scouter draws from the global state
    torch.manual_seed(job.seed)
    embedding = job.features.astype(np.float32)
    embedding.loc["ctrl"] = 0.0  # says Scouter: one of the two that are perturbed is none
    data = ScouterData(_with_conditions(train), embedding, "condition", "gene_name")
    data.setup_ad(slim=False)  # slim would forget the embeddings of perturbations without cells
    data.gene_ranks()
    data.get_dropout_non_zero_genes()
    data.split_Train_Val_Test(val_conds=one_in_ten(data.adata.obs["condition"], job.seed), if_test=False)
    model = Scouter(data, device="cpu")
    model.model_init()
    model.train(n_epochs=job.options.get("epochs", 40))
    return model


def _with_conditions(adata) -> ad.AnnData:
    obs = pd.DataFrame({"condition": pairs_with_ctrl(adata.obs["perturbation"].astype(str))}, index=adata.obs_names)
    var = pd.DataFrame({"gene_name": adata.var_names.to_numpy()}, index=adata.var_names)
    return ad.AnnData(adata.X.tocsr(), obs=obs.astype("category"), var=var)


def predict(model, source, targets, job):
    """Every control cell under every target; Scouter's own method draws control cells at random."""
    network, x, found = model.network.eval(), torch.tensor(source.X.toarray()), {}
    for target, condition in zip(targets, pairs_with_ctrl(targets), strict=True):
        pair = [model.embd_idx_dict[token] for token in condition.split("+")]
        with torch.no_grad():
            found[target] = network(torch.tensor([pair] * source.n_obs), x).numpy()
    return found


serve(fit, predict)
