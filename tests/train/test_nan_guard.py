import numpy as np
import pytest
import torch
from torch.distributions import Normal

from scvi_causal.train import CausalTrainingPlan, NaNGuard, NonFiniteError, _nan_guard, find_non_finite

from .conftest import TinyModule, make_batch

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("X", NAN, r"the input 'X' has 1 NaN of 12 values \(rows of adata: 12\)"),
        ("control_X", INF, None),
        ("X", INF, r"the input 'X' has 1 infinite of 12 values \(rows of adata: 12\)"),
    ],
)
def test_names_the_input_and_its_cells(fit, key, value, message):
    batch = make_batch()
    batch[key][2, 1] = value
    plan = CausalTrainingPlan(TinyModule())
    if message is None:  # an input that the loss does not use does no harm
        fit(plan, [batch])
        return
    with pytest.raises(NonFiniteError, match=f"loss is not finite in epoch 0, step 0: {message}.*AnnData"):
        fit(plan, [batch])


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("inference", "loss is not finite.*inference output 'z' has 8 infinite of 8 values.*encoder"),
        ("component", "loss is not finite.*loss component 'mmd' has 1 infinite of 1 values.*`lr`"),
        ("gradient", "gradient is not finite.*gradient 'decoder.bias' has 3 NaN of 3 values.*`gradient_clip_val`"),
        ("loss", "loss is not finite.*the loss 'loss' has 1 infinite of 1 values"),
    ],
)
def test_names_where_it_began(fit, fails, message):
    with pytest.raises(ValueError, match=message):
        fit(CausalTrainingPlan(TinyModule(fails)))


def test_names_the_parameter_and_the_step(fit):
    class Breaks(TinyModule):
        def inference(self, x):
            if len(self.kl_weights) == 3:  # three steps are done
                with torch.no_grad():
                    self.decoder.weight[0, 0] = NAN
            return super().inference(x)

    with pytest.raises(NonFiniteError, match=r"epoch 1, step 3: the parameter 'decoder.weight' has 1 NaN of 6"):
        fit(CausalTrainingPlan(Breaks()), max_epochs=5)


def test_explains_what_a_distribution_refuses(fit):
    batch = make_batch()
    batch["X"][3, 0] = NAN
    with pytest.raises(NonFiniteError, match=r"step failed in epoch 0, step 0: the input 'X'.*rows of adata: 13"):
        fit(CausalTrainingPlan(TinyModule("distribution")), [batch])


def test_leaves_other_errors_alone(fit):
    class Wrong(TinyModule):
        def loss(self, tensors, inference_outputs, generative_outputs):
            raise ValueError("something else")

    with pytest.raises(ValueError, match="^something else$"):
        fit(CausalTrainingPlan(Wrong()))


def test_a_healthy_run_is_not_searched(fit, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(_nan_guard, "find_non_finite", fail)
    fit(CausalTrainingPlan(TinyModule()), max_epochs=3)


def test_can_be_left_out_or_brought_along(fit):
    trainer = fit(CausalTrainingPlan(TinyModule("loss"), nan_guard=False))
    assert not np.isfinite(float(trainer.callback_metrics["train_loss"]))
    own = NaNGuard(check_gradients=False)
    with pytest.raises(NonFiniteError, match="epoch 0, step 1: the parameter 'decoder.bias'"):
        fit(CausalTrainingPlan(TinyModule("gradient")), callbacks=[own])


def test_looks_at_every_nth_step_only(fit):
    batches = [make_batch(), make_batch(), make_batch()]
    batches[1]["X"][0, 0] = NAN
    with pytest.raises(NonFiniteError, match="step 2: the parameter"):
        fit(CausalTrainingPlan(TinyModule()), batches, callbacks=[NaNGuard(every_n_steps=2)])


def test_looks_into_distributions_and_nested_outputs():
    outputs = ({"qz": Normal(torch.tensor([0.0, NAN]), 1.0, validate_args=False)}, {}, None)
    assert find_non_finite(outputs=outputs).name == "qz.loc"
    outputs = ({"all": [torch.zeros(2), {"deep": torch.tensor(INF)}]}, {}, None)
    assert find_non_finite(outputs=outputs).name == "all[1].deep"
    assert find_non_finite(make_batch(), TinyModule()) is None
