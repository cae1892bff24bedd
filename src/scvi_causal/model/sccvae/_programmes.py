"""Latent effects of perturbations without noise, and the functional modules that they form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ProgrammesMixin:
    """Effect vectors and ``get_modules``."""

    @torch.inference_mode()
    def _perturbation_vectors(self, labels: np.ndarray, features: pd.DataFrame | None) -> tuple[np.ndarray, list[str]]:
        r"""Total effect of each label without the noise of a cell.

        With ``preset="paper"`` the nodes :math:`\delta (I - B)^{-1}`; else genes: the log fold changes that arrive through the
        network plus the response programmes, at the average state.
        """
        encoded = self._vocabulary.parse
        tokens = sorted({token for label in labels for token in encoded(label)})
        inputs = {key: value.to(self.module.device) for key, value in self._get_token_inputs(tokens, features).items()}
        place = {token: i for i, token in enumerate(tokens)}
        dosage = torch.zeros(len(labels), len(tokens), device=self.module.device)
        for row, label in enumerate(labels):
            dosage[row, [place[token] for token in encoded(label)]] = 1.0
        dosage = dosage * inputs["strength"]
        if self._preset == "paper":
            shift = dosage @ self.module.direction(inputs["features"])
            return self.module.sem(shift).cpu().numpy(), [f"node_{i}" for i in range(shift.shape[1])]
        response = self.module.response_of(inputs)
        effect = dosage @ response["network"] + dosage @ response["shift"] @ self.module.loadings
        return effect.cpu().numpy(), self._var_names().tolist()

    def get_modules(
        self,
        perturbations: Sequence[str] | None = None,
        *,
        method: Literal["leiden", "hierarchical"] = "leiden",
        n_modules: int | None = None,
        resolution: float = 1.0,
        n_neighbors: int = 10,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Group perturbations whose effects point the same way: candidate functional modules.

        Parameters
        ----------
        perturbations
            Labels; by default all conditions of the training cells but the control.
        method
            ``"leiden"`` on a graph of nearest neighbours by cosine, or ``"hierarchical"``:
            average linkage of cosine distances, cut into ``n_modules``.
        n_modules
            Number of modules of the hierarchical method; by default the square root of the number of perturbations.
        resolution, n_neighbors
            Of the Leiden method.
        seed
            Of the Leiden method.

        Returns
        -------
        DataFrame, one row per perturbation: ``module`` (category ``"0"`` upward, the largest first) and ``effect_size`` (norm of
        the effect vector).

        Examples
        --------
        >>> import scvi_causal
        >>> adata = scvi_causal.data.simulate_screen(
        ...     n_genes=20, n_cells_per_perturbation=20, n_control=60, seed=0
        ... ).adata
        >>> scvi_causal.SCCVAE.setup_anndata(adata)
        >>> model = scvi_causal.SCCVAE(adata)
        >>> model.train(max_epochs=1, progress_bar_refresh_rate=0)
        >>> model.get_modules(method="hierarchical", n_modules=3)["module"].nunique()
        3
        """
        if n_modules is not None and method == "leiden":
            raise ValueError(
                "n_modules is of method='hierarchical'; the Leiden method takes resolution (more is finer)."
            )
        labels = self.seen_conditions_ if perturbations is None else perturbations
        labels = [label for label in labels if self._vocabulary.parse(label)]
        vectors = self.get_perturbation_embedding(labels)
        if vectors.n_obs < 3:
            raise ValueError(f"Modules need at least 3 perturbations, and there are {vectors.n_obs}.")
        size = np.linalg.norm(vectors.X, axis=1)
        if method == "leiden":
            import scanpy as sc
            from sklearn.neighbors import kneighbors_graph

            # exact neighbours: there are few perturbations, and approximate ones would start threads of their own
            near = kneighbors_graph(vectors.X, min(n_neighbors, vectors.n_obs - 1), mode="distance", metric="cosine")
            near.data = np.clip(
                1.0 - near.data, 0.0, None
            )  # effects at right angles are not alike, nor are opposite ones
            near.eliminate_zeros()
            options = {"resolution": resolution, "flavor": "igraph", "n_iterations": 2, "directed": False}
            sc.tl.leiden(vectors, adjacency=near.maximum(near.T), random_state=seed, **options)
            code = vectors.obs["leiden"].astype(int).to_numpy()
        elif method == "hierarchical":
            from scipy.cluster.hierarchy import fcluster, linkage

            unit = vectors.X / np.maximum(size, 1e-12)[:, None]
            tree = linkage(unit, method="average", metric="cosine")
            code = fcluster(tree, n_modules or max(2, round(np.sqrt(vectors.n_obs))), criterion="maxclust")
        else:
            raise ValueError(f"method={method!r} is neither 'leiden' nor 'hierarchical'.")
        order = pd.Series(code).value_counts().index
        names = pd.Categorical(
            pd.Series(code).map({c: str(i) for i, c in enumerate(order)}), [str(i) for i in range(len(order))]
        )
        return pd.DataFrame(
            {"module": names, "effect_size": size}, index=pd.Index(vectors.obs_names, name="perturbation")
        )

    def get_module_enrichment(self, modules: pd.DataFrame, gene_sets: Mapping[str, Sequence[str]]) -> pd.DataFrame:
        """Which given gene sets are over-represented among the tokens of which module.

        Parameters
        ----------
        modules
            From :meth:`get_modules`.
        gene_sets
            Name of each set and its genes.

        Returns
        -------
        DataFrame ``module``, ``gene_set``, ``overlap``, ``module_size``, ``set_size`` (among the tokens), ``odds_ratio``, ``p_value``
        (hypergeometric, one-sided) and ``p_adjusted`` (Benjamini-Hochberg), the smallest first.
        """
        from scipy.stats import false_discovery_control, fisher_exact

        tokens_of = {
            module: {t for label in group.index for t in self._vocabulary.parse(label)}
            for module, group in modules.groupby("module", observed=True)
        }
        universe = set().union(*tokens_of.values())
        rows = []
        for module, tokens in tokens_of.items():
            for name, genes in gene_sets.items():
                members = universe & set(genes)
                both = len(tokens & members)
                table = [
                    [both, len(tokens) - both],
                    [len(members) - both, len(universe | tokens) - len(tokens | members)],
                ]
                ratio, p = fisher_exact(table, alternative="greater")
                rows.append((module, name, both, len(tokens), len(members), ratio, p))
        columns = ["module", "gene_set", "overlap", "module_size", "set_size", "odds_ratio", "p_value"]
        found = pd.DataFrame(rows, columns=columns)
        found["p_adjusted"] = false_discovery_control(found["p_value"]) if len(found) else []
        return found.sort_values("p_value", kind="stable").reset_index(drop=True)
