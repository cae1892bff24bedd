"""scGen as pertpy has it: an autoencoder, and the shift between perturbed and control cells in its latent space.

Settings of its tutorial: at most 100 epochs in batches of 32, stopped after 25 without progress.
"""

from __future__ import annotations

from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from _exchange import serve
from pertpy.tools import Scgen


def fit(train, job):
    """Perturbation as batch, context as label."""
    scvi.settings.seed = job.seed
    adata = _plain(train)
    Scgen.setup_anndata(adata, batch_key="perturbation", labels_key="context")
    model = Scgen(adata)
    model.train(
        max_epochs=job.options.get("epochs", 100),
        batch_size=32,
        early_stopping=True,
        early_stopping_patience=25,
        enable_progress_bar=False,
    )
    return model


def _plain(adata) -> ad.AnnData:
    obs = adata.obs[["perturbation", "context"]].astype(str).astype("category")
    return ad.AnnData(adata.X.tocsr(), obs=obs, var=pd.DataFrame(index=adata.var_names))


def predict(model, source, targets, job):
    """Every control cell under every target."""
    found = {}
    for target in targets:
        # scGen balances contexts with generators that it does not seed
        with mock.patch("numpy.random.default_rng", return_value=np.random.default_rng(job.seed)):
            predicted, _ = model.predict(ctrl_key="ctrl", stim_key=target, adata_to_predict=_plain(source))
        found[target] = predicted.X
    return found


serve(fit, predict)
