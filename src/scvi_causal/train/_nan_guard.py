"""Stop at the first number that is none, and say where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch.callbacks import Callback
from torch.distributions import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import lightning.pytorch as pl
    from torch import Tensor

_ADVICE = {
    "input": "Look at these cells in the AnnData (layer, size factor, covariates) and remove or repair them.",
    "parameter": "An earlier step overflowed: train again with a lower `lr` (plan_kwargs={'lr': 1e-4}) or with "
    "`gradient_clip_val` (plan_kwargs={'gradient_clip_val': 1.0}).",
    "inference output": "The encoder overflowed: try a lower `lr`, `gradient_clip_val`, or log-transformed input.",
    "generative output": "The decoder overflowed: try a lower `lr`, `gradient_clip_val`, or check for cells with an extreme "
    "library or size factor.",
    "loss component": "Its inputs are finite, so the overflow is in the loss: try a lower `lr`, `gradient_clip_val`, 32-bit "
    "precision, or check for cells with an extreme library or size factor.",
    "gradient": "The loss is finite, so the overflow is in its derivative: try `gradient_clip_val` (it helps against "
    "large gradients, not against NaN), a lower `lr`, or 32-bit precision.",
    "loss": "Its components are finite: try a lower `lr` or 32-bit precision.",
}


class NonFiniteError(ValueError):
    """Training met a NaN or an infinity."""


class NonFinite(NamedTuple):
    """Where the first bad tensor is and how bad it is."""

    kind: str
    name: str
    n_nan: int
    n_infinite: int
    n_values: int
    rows: tuple[int, ...] = ()

    def describe(self) -> str:
        """Return a sentence about what was found and one about what to try."""
        amounts = ((self.n_nan, "NaN"), (self.n_infinite, "infinite"))
        bad = " and ".join(f"{n} {word}" for n, word in amounts if n)
        rows = f" (rows of adata: {', '.join(map(str, self.rows))})" if self.rows else ""
        return f"the {self.kind} {self.name!r} has {bad} of {self.n_values} values{rows}. {_ADVICE[self.kind]}"


def _named_tensors(prefix: str, value) -> Iterator[tuple[str, Tensor]]:
    """Walk through dicts, sequences and the parameters of distributions."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _named_tensors(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _named_tensors(f"{prefix}[{position}]", item)
    elif isinstance(value, Distribution):
        # arg_constraints lists all parametrisations of a distribution; take those that it was made with.
        for key in value.arg_constraints:
            if isinstance(item := value.__dict__.get(key), torch.Tensor):
                yield f"{prefix}.{key}", item


def _first_bad(kind: str, named: Iterable[tuple[str, Tensor]], cells: Tensor | None = None) -> NonFinite | None:
    for name, tensor in named:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        tensor = tensor.detach()
        tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
        finite = torch.isfinite(tensor)
        if finite.all():
            continue
        n_nan = int(torch.isnan(tensor).sum())
        rows: tuple[int, ...] = ()
        if cells is not None and tensor.ndim > 0 and tensor.shape[0] == cells.shape[0]:
            bad = ~finite.reshape(tensor.shape[0], -1).all(dim=1)
            rows = tuple(cells.reshape(-1)[bad][:5].tolist())
        return NonFinite(kind, name, n_nan, int((~finite).sum()) - n_nan, tensor.numel(), rows)
    return None


def _components(loss) -> dict[str, Tensor]:
    """Return what the loss is made of, without the stand-ins (0 times the loss) of what the module did not give."""
    parts: dict[str, Tensor] = {}
    for part in (loss.reconstruction_loss, loss.kl_local, loss.kl_global, loss.extra_metrics):
        parts.update(part or {})
    origin = getattr(loss.loss, "grad_fn", None)

    def is_stand_in(value) -> bool:
        made_by = getattr(value, "grad_fn", None)
        return origin is not None and made_by is not None and any(f is origin for f, _ in made_by.next_functions)

    return {name: value for name, value in parts.items() if not is_stand_in(value)}


def find_non_finite(
    batch: dict | None = None,
    module: torch.nn.Module | None = None,
    outputs: tuple | None = None,
    gradients: bool = False,
) -> NonFinite | None:
    """Return the first tensor with a NaN or an infinity, in the order in which a training step makes them.

    Parameters
    ----------
    batch
        Tensors that go in.
    module
        Module whose parameters, and at the end their gradients, are looked at.
    outputs
        What the module gave back: inference outputs, generative outputs, :class:`~scvi.module.base.LossOutput`.
    gradients
        Whether the gradients of the module belong to this step.

    Returns
    -------
    What and where it is, or None where all is finite.

    Examples
    --------
    >>> import torch
    >>> found = find_non_finite({"X": torch.tensor([[1.0], [float("nan")]]), "ind_x": torch.tensor([[7], [9]])})
    >>> found.kind, found.name, found.n_nan, found.rows
    ('input', 'X', 1, (9,))
    """
    batch = batch if isinstance(batch, dict) else {}
    controls = {key: value for key, value in batch.items() if key.startswith("control_")}
    cells = {key: value for key, value in batch.items() if key not in controls}
    inference, generative, loss = outputs if outputs is not None else ({}, {}, None)
    components = {} if loss is None else _components(loss)
    parameters = list(module.named_parameters()) if module is not None else []
    looked_at = [
        ("input", _named_tensors("", cells), cells.get("ind_x")),
        ("input", _named_tensors("", controls), controls.get("control_ind_x")),
        ("parameter", parameters, None),
        ("inference output", _named_tensors("", inference), None),
        ("generative output", _named_tensors("", generative), None),
        ("loss component", _named_tensors("", components), None),
        ("loss", [] if loss is None else [("loss", loss.loss)], None),
    ]
    if gradients:
        looked_at.append(("gradient", [(name, p.grad) for name, p in parameters if p.grad is not None], None))
    for kind, named, rows in looked_at:
        if (found := _first_bad(kind, named, rows)) is not None:
            return found
    return None


class NaNGuard(Callback):
    """Stops training at the first loss or gradient that is not finite, and names the tensor where it began.

    Each step looks at one number, the loss, and at the norm of each gradient; only if one of them is bad are the inputs,
    the parameters, what the module computed, the components of the loss and the gradients searched, in this order.

    Parameters
    ----------
    check_gradients
        Whether to look at gradients too: one pass over them each step. Without, a bad gradient is found one step later,
        as a bad parameter.
    every_n_steps
        Look at every n-th step only. On an accelerator looking waits for the step to finish.

    Raises
    ------
    NonFiniteError
        A ``ValueError`` that names the first bad tensor, its kind, how many of its values are bad, and what to try.
    """

    def __init__(self, check_gradients: bool = True, every_n_steps: int = 1):
        self.check_gradients, self.every_n_steps = check_gradients, every_n_steps
        self._batch = None

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0

    def _stop(self, trainer: pl.Trainer, plan: pl.LightningModule, what: str, gradients: bool) -> None:
        outputs = getattr(plan, "step_outputs", None)
        found = find_non_finite(self._batch, plan.module, outputs, gradients=gradients)
        detail = found.describe() if found is not None else "nothing else in this step is. Try a lower `lr`."
        raise NonFiniteError(
            f"The {what} is not finite in epoch {trainer.current_epoch}, step {trainer.global_step}: {detail}"
        )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        """Keep the batch of this step in reach."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Look at the loss."""
        if self._is_due(trainer) and not torch.isfinite(loss.detach()).all():
            self._stop(trainer, pl_module, "loss", gradients=False)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        """Look at the norms of the gradients."""
        if not self.check_gradients or not self._is_due(trainer) or _is_scaled(trainer):
            return
        gradients = [p.grad for p in pl_module.module.parameters() if p.grad is not None]
        if gradients and not torch.isfinite(_total_norm(gradients)):
            self._stop(trainer, pl_module, "gradient", gradients=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        """Let go of the batch and of what was computed from it."""
        self._batch = None
        if hasattr(pl_module, "step_outputs"):
            pl_module.step_outputs = None


def _is_scaled(trainer: pl.Trainer) -> bool:
    """Return whether gradients are scaled up for float16, where an infinity now and then is how the scale is found."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _total_norm(gradients: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).sum()
