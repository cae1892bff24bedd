"""Continuous cells from a structural model under drugs with hidden targets, described by features and dosages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Part = Literal["train", "new dosage", "new drug"]
_N_EXACT = 20_000  # cells that stand for the population where there is no closed form


@dataclass(frozen=True, eq=False)
class DrugSimulation:
    """A simulated drug screen and the truth behind it; made by :func:`simulate_drugs`.

    Everything is on the scale of ``adata``: nodes have mean 0 and standard deviation 1 in control cells.
    """

    adata: AnnData
    """Cells of the training conditions; ``obs``: perturbation, dosage (0 for control); ``uns["features"]``: features of all
    drugs, the new ones too."""
    grn: pd.DataFrame
    """True edges: source, target, weight (of the linear model)."""
    conditions: pd.DataFrame
    """All conditions: perturbation, dosage, part (``"train"``, ``"new dosage"`` of a known drug, ``"new drug"``)."""
    sizes: pd.DataFrame
    """(conditions x nodes) size of the intervention on each node; 0 where the node is no target."""
    targets: pd.DataFrame
    """(conditions x nodes) whether the node is a target."""
    means: pd.DataFrame
    """(conditions x nodes) mean of the population under the condition."""
    covariances: np.ndarray
    """(conditions, nodes, nodes)"""
    _draw: Callable = field(repr=False)

    def draw(self, condition: int | None = None, n_cells: int = 200, seed: int = 0) -> np.ndarray:
        """(n_cells, nodes) fresh cells of a condition (row of ``conditions``), or of the control population."""
        rng = np.random.default_rng([seed, 7])
        nothing = np.zeros(self.adata.n_vars)
        if condition is None:
            return self._draw(nothing, nothing, n_cells, rng)
        return self._draw(self.targets.to_numpy()[condition], self.sizes.to_numpy()[condition], n_cells, rng)


def simulate_drugs(
    n_nodes: int = 10,
    n_drugs: int = 40,
    n_new_drugs: int = 20,
    dosages: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    new_dosages: Sequence[float] = (0.25, 0.75, 1.25, 1.75, 2.25),
    *,
    n_classes: int | None = None,
    edges_per_node: float = 2.0,
    intervention: Literal["shift", "hard"] = "shift",
    mechanism: Literal["linear", "tanh"] = "linear",
    n_cells: int = 50,
    n_control: int = 800,
    seed: int = 0,
) -> DrugSimulation:
    r"""Simulate drugs that act through hidden classes of targets with Hill responses to the dosage.

    Nodes follow a random acyclic graph with weights :math:`\pm U(0.5, 1.5)` and noise :math:`U(0.5, 1.5)`, standardised. A
    class of drugs has one or two targets with sizes :math:`\pm U(1, 3)` noise standard deviations, a half-effective dosage
    :math:`U(0.5, 2)` and a Hill coefficient :math:`U(1, 3)`. A drug belongs to one or two classes with strengths
    :math:`U(0.5, 1.5)`; at dosage c it moves the targets of its classes by

    .. math::
        s_j(c) = \sum_{\text{class}} \text{strength} \cdot \text{size}_j \cdot \frac{c^h}{c^h + EC_{50}^h}

    What a model is told are *features*: a random rotation of the vector of classes, and noise of standard deviation 0.05.

    Parameters
    ----------
    n_nodes, edges_per_node
        Of the graph.
    n_drugs, n_new_drugs
        Drugs with and without training cells.
    dosages, new_dosages
        Dosages of the training conditions and of the new drugs, and others at which the known drugs are asked for.
    n_classes
        Number of classes; as many as nodes by default. As far as there are enough classes every node is a target.
    intervention
        ``"shift"`` adds to the mechanism of a target; ``"hard"`` cuts the target off its parents and draws it around its control
        mean plus the size.
    mechanism
        ``"linear"``, or ``"tanh"``: a node depends on the hyperbolic tangents of its parents.
    n_cells, n_control
        Cells per training condition, and control cells.
    seed
        Of everything.

    Returns
    -------
    A :class:`DrugSimulation`.

    Raises
    ------
    ValueError
        For names that are no choice.

    Notes
    -----
    Means and covariances are exact for linear mechanisms, otherwise those of 20,000 cells.

    Examples
    --------
    >>> from scvi_causal.data import simulate_drugs
    >>> simulation = simulate_drugs(n_nodes=5, n_drugs=6, n_new_drugs=2, n_cells=10, n_control=50, seed=0)
    >>> simulation.adata.shape
    (290, 5)
    >>> simulation.conditions["part"].value_counts().tolist()
    [30, 24, 8]
    """
    for name, value, known in (
        ("intervention", intervention, ("shift", "hard")),
        ("mechanism", mechanism, ("linear", "tanh")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}.")
    rng = np.random.default_rng([seed, 43])
    weight, noise_sd = _random_model(n_nodes, edges_per_node, rng)
    n_classes = n_nodes if n_classes is None else n_classes
    classes = _random_classes(n_classes, n_nodes, noise_sd, rng)
    strength = _random_drugs(n_drugs + n_new_drugs, n_classes, rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(n_classes, n_classes)))
    features = strength @ rotation + 0.05 * rng.normal(size=strength.shape)

    model = _Model(weight, noise_sd, intervention, mechanism)
    model.standardise(rng)
    names = [f"drug{i:03d}" for i in range(n_drugs + n_new_drugs)]
    parts = [("train", range(n_drugs), dosages), ("new dosage", range(n_drugs), new_dosages)]
    parts.append(("new drug", range(n_drugs, n_drugs + n_new_drugs), dosages))
    rows = [(i, float(c), part) for part, drugs, amounts in parts for i in drugs for c in amounts]
    drug, amount = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    sizes = _sizes(strength[drug], amount, classes) / model.sd
    targets = (strength[drug] > 0) @ (classes["size"] != 0) > 0
    moments = [model.moments(t, s, rng) for t, s in zip(targets, sizes, strict=True)]

    nodes = [f"node{j:0{len(str(n_nodes - 1))}d}" for j in range(n_nodes)]
    conditions = pd.DataFrame({"perturbation": np.array(names)[drug], "dosage": amount, "part": [r[2] for r in rows]})
    n_train = n_drugs * len(dosages)
    cells = [model.draw(np.zeros(n_nodes), np.zeros(n_nodes), n_control, rng)]
    cells += [model.draw(targets[k], sizes[k], n_cells, rng) for k in range(n_train)]
    label = ["control"] * n_control + np.repeat(np.array(names)[drug[:n_train]], n_cells).tolist()
    obs = pd.DataFrame({"perturbation": pd.Categorical(label)}, index=[f"cell{i}" for i in range(len(label))])
    obs["dosage"] = np.concatenate([np.zeros(n_control), np.repeat(amount[:n_train], n_cells)])
    adata = AnnData(np.concatenate(cells).astype(np.float32), obs=obs, var=pd.DataFrame(index=nodes))
    columns = [f"feature{i}" for i in range(n_classes)]
    adata.uns["features"] = pd.DataFrame(features.astype(np.float32), index=names, columns=columns)
    source, target = np.nonzero(weight)
    scaled = weight * model.sd[:, None] / model.sd
    return DrugSimulation(
        adata=adata,
        grn=pd.DataFrame(
            {"source": np.array(nodes)[source], "target": np.array(nodes)[target], "weight": scaled[source, target]}
        ),
        conditions=conditions,
        sizes=pd.DataFrame(sizes, columns=nodes),
        targets=pd.DataFrame(targets, columns=nodes),
        means=pd.DataFrame(np.array([mean for mean, _ in moments]), columns=nodes),
        covariances=np.array([covariance for _, covariance in moments]),
        _draw=model.draw,
    )


def _random_model(d: int, edges_per_node: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(d, d) weights of an Erdős-Rényi graph under a random order, and (d,) noise standard deviations."""
    density = min(1.0, edges_per_node * d / max(d * (d - 1) / 2, 1))
    upper = np.triu(rng.random((d, d)) < density, 1) * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    order = rng.permutation(d)
    weight = np.zeros((d, d))
    weight[np.ix_(order, order)] = upper
    return weight, rng.uniform(0.5, 1.5, d)


def _random_classes(p: int, d: int, noise_sd: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sizes (p, d), half-effective dosages (p,) and Hill coefficients (p,) of the classes."""
    size = np.zeros((p, d))
    first = np.concatenate([rng.permutation(d) for _ in range(-(-p // d))])[:p]
    for i in range(p):
        others = np.setdiff1d(np.arange(d), first[i])
        chosen = [first[i], *rng.choice(others, min(len(others), int(rng.integers(0, 2))), replace=False)]
        size[i, chosen] = rng.uniform(1, 3, len(chosen)) * rng.choice([-1, 1], len(chosen))
    return {"size": size * noise_sd, "ec50": rng.uniform(0.5, 2, p), "hill": rng.uniform(1, 3, p)}


def _random_drugs(n: int, p: int, rng: np.random.Generator) -> np.ndarray:
    """(n, p) strength of each class in each drug; one or two are not 0."""
    strength = np.zeros((n, p))
    for row in strength:
        chosen = rng.choice(p, min(p, int(rng.integers(1, 3))), replace=False)
        row[chosen] = rng.uniform(0.5, 1.5, len(chosen))
    return strength


def _sizes(strength: np.ndarray, dosage: np.ndarray, classes: dict[str, np.ndarray]) -> np.ndarray:
    """(conditions, d) sizes of the interventions."""
    power = dosage[:, None] ** classes["hill"]
    return (strength * power / (power + classes["ec50"] ** classes["hill"])) @ classes["size"]


class _Model:
    """The structural model, on the standardised scale after :meth:`standardise`."""

    def __init__(self, weight: np.ndarray, noise_sd: np.ndarray, intervention: str, mechanism: str):
        self.weight, self.noise_sd = weight, noise_sd
        self.hard, self.linear = intervention == "hard", mechanism == "linear"
        d = len(weight)
        self.center, self.sd = np.zeros(d), np.ones(d)
        system = (weight != 0).astype(float)
        depth = np.linalg.inv(np.eye(d) - system).sum(0)  # number of paths into a node grows along the order
        self.order = np.argsort(depth, kind="stable")

    def standardise(self, rng: np.random.Generator) -> None:
        nothing = np.zeros(len(self.weight))
        mean, covariance = self.moments(nothing, nothing, rng)
        self.center, self.sd = mean, np.sqrt(np.diag(covariance))

    def moments(self, targets: np.ndarray, sizes: np.ndarray, rng: np.random.Generator):
        """Mean and covariance of the population; exact where everything is linear."""
        if not self.linear:
            x = self.draw(targets, sizes, _N_EXACT, rng)
            return x.mean(0), np.cov(x, rowvar=False)
        weight, shift = self.weight, sizes * self.sd
        if self.hard:
            # a target is drawn around its control mean, which is 0 before standardising
            weight = weight * (1 - targets)
        total = np.linalg.inv(np.eye(len(weight)) - weight)
        covariance = total.T @ np.diag(self.noise_sd**2) @ total
        return (shift @ total - self.center) / self.sd, covariance / np.outer(self.sd, self.sd)

    def draw(self, targets: np.ndarray, sizes: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n, d) cells, node by node along the order of the graph."""
        noise = rng.normal(size=(n, len(self.weight))) * self.noise_sd
        x = np.zeros_like(noise)
        for j in self.order:
            parents = np.flatnonzero(self.weight[:, j])
            values = x[:, parents] if self.linear else 2 * np.tanh(x[:, parents])
            x[:, j] = values @ self.weight[parents, j] + noise[:, j] + sizes[j] * self.sd[j]
            if self.hard and targets[j]:
                base = 0.0 if self.linear else self.center[j]
                x[:, j] = base + sizes[j] * self.sd[j] + noise[:, j]
        return (x - self.center) / self.sd
