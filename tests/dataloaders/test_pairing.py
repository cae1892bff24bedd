import warnings

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scvi_causal.dataloaders import ControlPairing, get_control_mask, get_strata, stratum_label

IS_CONTROL = np.array([1, 1, 0, 1, 0, 0, 1, 0], dtype=bool)
FINE = np.array([0, 0, 0, 1, 1, 2, 3, 3])
COARSE = np.array([0, 0, 0, 1, 1, 1, 2, 2])


def test_partners_are_controls_of_the_same_stratum_and_uniform():
    pairing = ControlPairing(IS_CONTROL, FINE)
    partners = pairing.draw(np.repeat([2, 4, 7, 0], 500), np.random.default_rng(0))
    assert set(partners[500:1000]) == {3}
    assert set(partners[1000:1500]) == {6}
    assert set(partners[1500:]) == {0, 1}
    assert np.mean(partners[:500] == 0) == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 500))
    assert set(partners[:500]) == {0, 1}


def test_only_the_pool_is_drawn_from():
    pairing = ControlPairing(IS_CONTROL, FINE, pool=np.array([1, 2, 3, 6]))
    assert set(pairing.draw(np.repeat(2, 50), np.random.default_rng(0))) == {1}


def test_falls_back_to_coarser_strata_then_to_any_with_one_warning():
    pairing = ControlPairing(
        IS_CONTROL, [FINE, COARSE], pool=np.array([0, 1, 3]), describe=lambda cell: f"stratum of {cell}"
    )
    with pytest.warns(
        UserWarning, match=r"3 cells are in 2 strata.*stratum of 5 \(1 cells\); stratum of 6 \(2 cells\)"
    ):
        partners = pairing.draw(np.array([5, 6, 7, 2]), np.random.default_rng(0))
    assert partners[0] == 3  # the control of the same coarse stratum
    assert set(partners[1:3]) <= {0, 1, 3}
    assert partners[3] in (0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        any_control = pairing.draw(np.repeat(7, 200), np.random.default_rng(1))
    assert set(any_control) == {0, 1, 3}


def test_same_generator_same_partners():
    pairing = ControlPairing(IS_CONTROL, FINE)
    cells = np.repeat(2, 40)
    draws = [pairing.draw(cells, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_no_control_in_the_pool():
    with pytest.raises(ValueError, match=r"None of the 2 cells .* \(of 4 controls in the data\)"):
        ControlPairing(IS_CONTROL, FINE, pool=np.array([2, 4]))


def test_strata_are_batch_times_covariates(adata, manager):
    strata = get_strata(manager)
    names = adata.obs["donor"].astype(str) + adata.obs["cell_type"].astype(str)
    assert len(np.unique(strata)) == names.nunique() == 6
    assert all(names[strata == code].nunique() == 1 for code in np.unique(strata))
    without = get_strata(manager, with_batch=False)
    assert all(adata.obs["cell_type"][without == code].nunique() == 1 for code in np.unique(without))
    assert len(np.unique(without)) == 3
    row = adata.obs.iloc[5]
    assert stratum_label(manager, 5) == f"donor={row['donor']}, cell_type={row['cell_type']}"


def test_codes_of_a_subset_are_those_of_the_whole(adata, manager):
    part = adata[adata.obs["cell_type"] == "NK"].copy()
    assert (get_strata(manager.transfer_fields(part)) == get_strata(manager)[adata.obs["cell_type"] == "NK"]).all()


def test_one_stratum_without_covariates(adata):
    from .conftest import register

    bare = register(adata, batch_key=None, covariate_keys=())
    assert (get_strata(bare) == 0).all()
    assert stratum_label(bare, 0) == "all cells"


def test_control_mask(adata, manager):
    assert (get_control_mask(manager) == (adata.obs["perturbation"] == "control")).all()
    # a stored zero is no dosage, an unknown perturbation (NaN) is no control
    adata.obsm["_scvi_perturbation"] = csr_matrix(
        (np.array([0.0, np.nan], dtype=np.float32), ([0, 1], [0, 0])), shape=(adata.n_obs, 3)
    )
    assert get_control_mask(manager)[:3].tolist() == [True, False, True]
