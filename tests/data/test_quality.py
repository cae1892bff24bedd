"""Flags of quality against closed forms, and on what real screens look like."""

from __future__ import annotations

import logging
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal

from scvi_causal.data import _cell_metrics, annotate_quality, describe_quality
from scvi_causal.data._cell_metrics import PAPER_PATTERNS, PATTERNS, cell_metrics
from scvi_causal.data._quality_thresholds import Rule

GENES = ["MT-CO1", "MT-ND1", "RPS3", "RPL10A", "RPS6KA1", "HBB", "HBEGF", "GAPDH"]


def screen(n=400, seed=0, **obs):
    """Controls and two perturbations, one batch in three shallow, library sizes log-normal."""
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.normal(0, 0.4, n)) * 60
    x = rng.poisson(depth[:, None] * np.linspace(0.5, 1.5, len(GENES))).astype(np.float32)
    labels = rng.choice(["control", "A", "B"], n)
    adata = ad.AnnData(
        sp.csr_matrix(x), pd.DataFrame({"perturbation": labels, **obs}, index=[f"c{i}" for i in range(n)])
    )
    adata.var_names = GENES
    return adata


class TestThreshold:
    def test_parity_mad_rule(self):
        # check 26 of the specification: median 3, MAD 1
        assert Rule(low=False, log=False).fit(np.array([1.0, 2, 3, 4, 100]), 3, False) == (3, 1, 6)
        assert Rule(low=True, log=False).fit(np.array([1.0, 2, 3, 4, 100]), 3, False) == (3, 1, 0)

    def test_on_the_log_scale_the_threshold_of_counts_is_positive(self):
        values = np.expm1(np.array([0.0, 1, 2, 3, 100]))
        median, mad, threshold = Rule(low=True, log=True).fit(values, 1.5, False)
        assert (median, mad) == pytest.approx((2, 1))
        assert threshold == pytest.approx(np.expm1(0.5))

    def test_a_spread_of_zero_sets_no_threshold_unless_asked(self):
        values = np.array([0.0, 0, 0, 0, 5])
        assert np.isnan(Rule(low=False, log=False).fit(values, 3, True)[2])
        assert Rule(low=False, log=False).fit(values, 3, False)[2] == 0

    def test_inequalities_are_strict(self):
        # 12 of 13 cells fix median 10 and MAD 1; the last lies on the threshold, or a little beyond
        for last, fails in ((13.0, False), (13.001, True)):
            mito = np.array([9.0, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11, last])
            adata = screen(13, mito=mito)
            annotate_quality(adata, preset="paper", columns={"mito": "mito"}, doublets=False)
            assert adata.obs["quality_high_mito"].tolist() == [False] * 12 + [fails]


class TestMetrics:
    @pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.coo_matrix])
    @pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
    def test_equal_plain_numpy(self, monkeypatch, form, dtype):
        monkeypatch.setattr(_cell_metrics, "_MAX_VALUES", 20)  # two cells at a time
        x = np.random.default_rng(0).poisson(40.0, (7, 8)).astype(dtype)
        x[2], x[3, 4:] = 0, 0
        adata = screen(7)
        adata.layers["counts"] = form(x) if form is not sp.coo_matrix else sp.csr_matrix(x)
        got = cell_metrics(adata, {}, PATTERNS, "counts", None)
        total = x.sum(1, dtype=float)
        np.testing.assert_array_equal(got["counts"], total)
        np.testing.assert_array_equal(got["genes"], (x > 0).sum(1))
        share = lambda columns: 100 * x[:, columns].sum(1, dtype=float) / np.maximum(total, 1)
        np.testing.assert_allclose(got["mito"], share([0, 1]), rtol=1e-6)
        np.testing.assert_allclose(got["ribo"], share([2, 3]), rtol=1e-6)
        np.testing.assert_allclose(got["hb"], share([5]), rtol=1e-6)

    @pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
    def test_stored_zeros_are_no_genes(self, form):
        adata = screen(5)
        x = adata.X.copy()
        x.data[: x.indptr[1]] = 0
        adata.layers["zeros"] = form(x)
        assert adata.layers["zeros"].nnz == x.nnz
        assert cell_metrics(adata, {}, PATTERNS, "zeros", None)["genes"][0] == 0

    def test_published_prefixes_count_kinases_and_growth_factors(self):
        adata = screen(5)
        mine, published = (cell_metrics(adata, {}, p, None, None) for p in (PATTERNS, PAPER_PATTERNS))
        assert (published["ribo"] > mine["ribo"]).all()
        assert (published["hb"] > mine["hb"]).all()
        names = "RPS3 RPL10A RPLP0 RPSA RPS4X RPS4Y1 RPL36AL RPS27L Rps29 Rpl7a".split()
        adata = ad.AnnData(np.eye(2, 16, dtype=np.float32))
        adata.var_names = [*names, "RPS6KB1", "RPS19BP1", "HBA1", "Hbb-bs", "HBEGF", "HBS1L"]
        adata.var["symbol"] = adata.var_names
        adata.X[:] = 1
        got = cell_metrics(adata, {}, PATTERNS, None, "symbol")
        assert got["ribo"].tolist() == [100 * 10 / 16] * 2
        assert got["hb"].tolist() == [100 * 2 / 16] * 2

    def test_a_known_library_is_what_shares_are_of(self):
        adata = screen(20, library=np.full(20, 1e4))
        mito = np.asarray(adata.X[:, :2].sum(1)).ravel()
        got = cell_metrics(adata, {"counts": "library"}, PATTERNS, None, None)
        np.testing.assert_allclose(got["mito"], mito / 100, rtol=1e-6)

    def test_backed_data_are_read_in_place(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_cell_metrics, "_MAX_VALUES", 80)
        adata = screen(60)
        adata.write_h5ad(tmp_path / "screen.h5ad")
        annotate_quality(adata, doublets=False)
        backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
        annotate_quality(backed, doublets=False)
        pd.testing.assert_frame_equal(backed.uns["quality_thresholds"], adata.uns["quality_thresholds"])
        backed.file.close()


class TestFlags:
    def test_damaged_cells_fail_and_others_pass(self):
        adata = screen(600)
        x = adata.X.toarray()
        x[:20] = np.floor(x[:20] / 20)  # nearly empty
        x[20:40, :2] *= 6  # leaking
        adata.X = sp.csr_matrix(x)
        annotate_quality(adata, doublets=False)
        assert adata.obs["quality_low_counts"][:20].all()
        assert adata.obs["quality_high_mito"][20:40].all()
        assert adata.obs["quality"][:40].eq("fail").all()
        # one-sided at 2.02 standard deviations: 2.2 % for each of five flags that overlap
        assert adata.obs["quality"][40:].eq("fail").mean() < 0.15

    def test_share_beyond_three_mads_of_normal_values(self):
        adata = screen(20_000, mito=np.random.default_rng(0).normal(size=20_000))
        annotate_quality(
            adata, columns={"mito": "mito", "counts": None, "genes": None, "ribo": None, "hb": None}, doublets=False
        )
        assert adata.obs["quality_high_mito"].mean() == pytest.approx(0.0215, abs=0.005)
        assert [c for c in adata.obs if c.startswith("quality")] == ["quality_high_mito", "quality"]

    def test_published_counts_can_never_be_too_low_and_the_default_repairs_it(self):
        # a spread of library sizes as in real screens: 3 MADs below the median is below zero
        counts = np.exp(np.random.default_rng(0).normal(9, 0.6, 1000))
        adata = screen(1000, counts=counts)
        kept = {"counts": "counts"} | dict.fromkeys(["genes", "mito", "ribo", "hb"])
        annotate_quality(adata, preset="paper", columns=kept, doublets=False)
        assert adata.uns["quality_thresholds"]["threshold"][0] < 0
        annotate_quality(adata, columns=kept, doublets=False)
        assert 0.005 < adata.obs["quality_low_counts"].mean() < 0.05

    def test_fitted_on_training_controls_only(self):
        adata = screen(900, mito=np.random.default_rng(1).normal(5, 1, 900))
        adata.obs["split"] = np.random.default_rng(2).choice(["train", "test"], 900)
        fit = (adata.obs["perturbation"] == "control") & (adata.obs["split"] == "train")
        adata.obs.loc[~fit, "mito"] = 50.0
        only_mito = {"mito": "mito"} | dict.fromkeys(["counts", "genes", "ribo", "hb"])
        annotate_quality(adata, columns=only_mito, split_key="split", doublets=False)
        table = adata.uns["quality_thresholds"]
        assert table["n_cells"].tolist() == [int(fit.sum())]
        assert table["median"][0] == np.median(adata.obs["mito"][fit])
        assert adata.obs["quality"][~fit].eq("fail").all()
        # as published, most cells define what is normal
        annotate_quality(adata, preset="paper", columns=only_mito, doublets=False)
        assert adata.obs["quality"][~fit].eq("pass").all()

    def test_a_shallow_batch_does_not_fail_as_a_whole(self):
        adata = screen(900)
        batch = np.repeat(["deep", "shallow", "tiny"], [700, 190, 10])
        x = adata.X.toarray()
        x[700:890] = np.floor(x[700:890] / 5)
        adata.X, adata.obs["batch"] = sp.csr_matrix(x), batch
        annotate_quality(adata, doublets=False)
        assert adata.obs["quality_low_counts"][700:890].mean() > 0.3
        with pytest.warns(UserWarning, match="1 batch of 3 have fewer than 50 cells to fit on .*'tiny'"):
            annotate_quality(adata, batch_key="batch", doublets=False)
        assert adata.obs["quality_low_counts"][700:890].mean() < 0.08
        table = adata.uns["quality_thresholds"].set_index(["batch", "flag"])
        assert table.loc[("tiny", "low_counts"), "n_cells"] == (adata.obs["perturbation"] == "control").sum()

    def test_known_doublets_and_stale_flags(self):
        adata = screen(50, called=np.arange(50) < 5)
        annotate_quality(adata, columns={"doublet": "called"})  # Scrublet is not asked
        assert adata.obs["quality_doublet"].sum() == 5
        assert adata.obs["quality"][:5].eq("fail").all()
        annotate_quality(adata, columns={"doublet": None})
        assert "quality_doublet" not in adata.obs

    @pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
    def test_the_counts_are_not_copied(self, monkeypatch, form):
        monkeypatch.setattr(_cell_metrics, "_MAX_VALUES", 2**18)
        rng = np.random.default_rng(0)
        x = form(sp.random(20_000, 500, 0.2, format="csr", dtype=np.float32, random_state=rng).ceil())
        obs = pd.DataFrame({"perturbation": "control"}, index=[str(i) for i in range(20_000)])
        adata = ad.AnnData(x, obs)
        adata.var_names = ["MT-CO1", "RPS3", *(f"g{i}" for i in range(498))]
        tracemalloc.start()
        try:
            annotate_quality(adata, doublets=False)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 0.5 * (x.data.nbytes + x.indices.nbytes)

    def test_counts_are_left_alone_and_results_can_be_written(self, tmp_path):
        adata = screen(100)
        before = adata.copy()
        annotate_quality(adata, key_added="qc", doublets=False)
        assert_equal(adata.X, before.X)
        assert list(adata.obs["qc"].cat.categories) == ["pass", "fail"]
        for name in ("screen.h5ad", "screen.zarr"):
            (adata.write_h5ad if name.endswith("h5ad") else adata.write_zarr)(tmp_path / name)
            again = (ad.read_h5ad if name.endswith("h5ad") else ad.read_zarr)(tmp_path / name)
            annotate_quality(again, key_added="qc", thresholds=again.uns["qc_thresholds"], doublets=False)
            assert again.obs["qc"].tolist() == adata.obs["qc"].tolist()
            assert again.uns["scvi_causal"]["qc"]["preset"] == "recommended"


class TestThresholdsOfOthers:
    def test_are_applied_as_they_are(self):
        adata, other = screen(300), screen(50, seed=1)
        adata.obs["batch"] = np.where(np.arange(300) < 150, "a", "b")
        other.obs["batch"] = "b"
        annotate_quality(adata, batch_key="batch", doublets=False)
        table = adata.uns["quality_thresholds"]
        annotate_quality(other, thresholds=table, batch_key="batch", doublets=False)
        cut = table.set_index(["batch", "flag"]).loc[("b", "low_counts"), "threshold"]
        assert other.obs["quality_low_counts"].tolist() == (np.asarray(other.X.sum(1)).ravel() < cut).tolist()
        pd.testing.assert_frame_equal(other.uns["quality_thresholds"], table)

    def test_metrics_come_from_where_they_were_fitted(self):
        adata, mito = screen(300), np.random.default_rng(0).random(300)
        adata.obs["whole"], adata.obs["leak"] = 50.0 * np.asarray(adata.X.sum(1)).ravel(), mito
        columns = {"counts": "whole", "mito": "leak", "genes": None, "ribo": None, "hb": None}
        annotate_quality(adata, columns=columns, doublets=False)
        table, before = adata.uns["quality_thresholds"], adata.obs["quality"].tolist()
        assert 0 < before.count("fail") < 60
        again = adata.copy()
        annotate_quality(again, doublets=False, thresholds=table)
        assert again.obs["quality"].tolist() == before
        with pytest.raises(ValueError, match=r"of 'counts' were fitted on obs\['whole'\].*read from the counts"):
            annotate_quality(again, doublets=False, thresholds=table, columns={"mito": "leak"})
        del again.obs["leak"]
        with pytest.raises(ValueError, match="'leak' is no column"):
            annotate_quality(again, doublets=False, thresholds=table)

    def test_that_do_not_fit_are_refused(self):
        adata = screen(300)
        adata.obs["batch"] = "a"
        annotate_quality(adata, batch_key="batch", doublets=False)
        table = adata.uns["quality_thresholds"]
        with pytest.raises(ValueError, match="fitted for the batches 'a', these cells come from 'all'"):
            annotate_quality(adata, thresholds=table, doublets=False)
        with pytest.raises(ValueError, match="thresholds are for 'mito' too"):
            annotate_quality(adata[:, 2:].copy(), thresholds=table, batch_key="batch", doublets=False)
        with pytest.raises(ValueError, match="lacks the columns 'threshold'"):
            annotate_quality(adata, thresholds=table[["batch", "flag"]], doublets=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "published"}, "preset='published' is not one of 'recommended', 'paper'"),
        ({"fit_on": "control"}, "fit_on='control' is not one of"),
        ({"n_mads": 0}, "n_mads=0: expected a positive number"),
        ({"columns": {"mitos": "p"}}, "columns names 'mitos'.*Did you mean 'mito'"),
        ({"columns": {"mito": "p_mitoo"}}, r"columns\['mito'\]='p_mitoo' is no column of obs. Did you mean 'p_mito'"),
        ({"columns": {"mito": "perturbation"}}, "no numbers"),
        ({"columns": {"mito": "holes"}}, "1 cell of 30 have no finite value"),
        ({"columns": {"doublet": "p_mito"}}, "expected True and False"),
        ({"patterns": {"hb": "x", "heme": "y"}}, "patterns names 'heme'"),
        ({"gene_symbols": "symbols"}, "gene_symbols='symbols' is no column of var"),
        ({"batch_key": "lane"}, "obs has no column 'lane'"),
        ({"control_category": "NT"}, "no cell .* labelled 'NT'.*control"),
        ({"split_key": "split"}, r"There is no control cell with obs\['split'\] = 'train'"),
        ({"columns": dict.fromkeys(["counts", "genes", "mito", "ribo", "hb"])}, "No flag is left"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(arguments, message):
    adata = screen(30, p_mito=np.linspace(0, 1, 30), split="test")
    adata.obs["holes"] = [np.nan, *range(29)]
    before = list(adata.obs)
    with pytest.raises(ValueError, match=message):
        annotate_quality(adata, doublets=False, **arguments)
    assert list(adata.obs) == before
    assert "quality_thresholds" not in adata.uns


def test_nan_counts_are_refused():
    adata = screen(10)
    adata.X.data[0] = np.nan
    with pytest.raises(ValueError, match="1 cell of 10 hold NaN"):
        annotate_quality(adata, doublets=False)


@pytest.mark.parametrize(("transform", "kind"), [(np.log1p, "fractional"), (np.negative, "negative")])
def test_transformed_counts_are_refused_unless_columns_stand_in_for_them(transform, kind):
    adata = screen(30)
    adata.obs["n"], adata.obs["m"] = adata.X.sum(1), (adata.X > 0).sum(1)
    adata.X = transform(adata.X)
    with pytest.raises(ValueError, match=f"X has .* {kind} value"):
        annotate_quality(adata, doublets=False)
    others = dict.fromkeys(("mito", "ribo", "hb"))
    annotate_quality(adata, doublets=False, columns={"counts": "n", "genes": "m", **others})
    assert "quality" in adata.obs


class TestDoublets:
    def test_batch_by_batch_and_a_batch_without_an_answer_is_named(self, monkeypatch):
        import scanpy as sc

        sizes = []

        def scrublet(part, **_):
            sizes.append(part.n_obs)
            part.obs["predicted_doublet"] = [np.nan, True] + [False] * (part.n_obs - 2)
            part.uns["scrublet"] = {"threshold": 0.3} if part.n_obs > 100 else {}

        monkeypatch.setattr(sc.pp, "scrublet", scrublet)
        adata = screen(300)
        adata.obs["batch"] = np.repeat(["a", "b"], [240, 60])
        with pytest.warns(UserWarning, match=r"no threshold in 1 batch \('b'\)"):
            annotate_quality(adata, fit_on="all", batch_key="batch", columns={"hb": None})
        assert sizes == [240, 60]
        assert adata.obs_names[adata.obs["quality_doublet"]].tolist() == ["c1", "c241"]

    def test_planted_doublets_are_found(self):
        rng = np.random.default_rng(0)
        kinds = rng.gamma(0.3, 1.0, (4, 300)) + 0.02
        rate = kinds[rng.integers(0, 4, 600)]
        # two cells of different kinds in one droplet
        rate[:30] = kinds[[rng.choice(4, 2, replace=False) for _ in range(30)]].sum(axis=1)
        counts = rng.poisson(10 * rate).astype(np.float32)
        obs = pd.DataFrame({"perturbation": "control"}, index=[str(i) for i in range(600)])
        adata = ad.AnnData(sp.csr_matrix(counts), obs)
        annotate_quality(adata)
        called = adata.obs["quality_doublet"].to_numpy()
        assert called[:30].mean() > 0.9
        assert called[30:].mean() < 0.05


class TestDescribe:
    def test_shares_and_test_by_hand(self):
        from scipy.stats import fisher_exact

        adata = screen(200)
        adata.obs["perturbation"] = np.repeat(["control", "A", "B"], [100, 50, 50])
        failed = np.isin(np.arange(200), [*range(10), *range(100, 130), *range(150, 155)])
        adata.obs["quality"] = np.where(failed, "fail", "pass")
        adata.obs["quality_high_mito"] = failed
        table = describe_quality(adata)
        assert table.index.tolist() == ["A", "B", "control"]
        assert table["n_cells"].tolist() == [50, 50, 100]
        assert table["fail"].tolist() == table["high_mito"].tolist() == [0.6, 0.1, 0.1]
        assert table["difference"].tolist() == pytest.approx([0.5, 0, 0])
        assert table.loc["A", "padj"] == pytest.approx(2 * fisher_exact([[30, 20], [10, 90]]).pvalue)
        assert np.isnan(table.loc["control", "padj"])
        assert table.loc["B", "padj"] == 1

    def test_other_values_are_refused_and_one_class_is_fine(self):
        adata = screen(40)
        adata.obs["quality"] = "good"
        with pytest.raises(ValueError, match="holds 'good' beside"):
            describe_quality(adata)
        adata.obs["quality"] = "fail"
        assert describe_quality(adata)["fail"].eq(1).all()
        only_control = adata[adata.obs["perturbation"] == "control"].copy()
        assert describe_quality(only_control)["padj"].isna().all()

    def test_a_flag_that_is_an_effect_is_named(self, caplog):
        adata = screen(600)
        x = adata.X.toarray()
        x[(adata.obs["perturbation"] == "B").to_numpy(), 5] *= 3  # B makes haemoglobin
        adata.X = sp.csr_matrix(x)
        with caplog.at_level(logging.WARNING, "scvi_causal"):
            annotate_quality(adata, doublets=False)
        (record,) = caplog.records
        assert "'high_hb' may be an effect" in record.message
        assert record.message.endswith("or see scvi_causal.data.describe_quality.")
        assert "So it is for 'B'." in record.message
        assert describe_quality(adata).loc["B", "padj"] < 1e-20


@pytest.mark.real_data
class TestReal:
    def test_papalexi_with_columns_of_the_whole_cell(self, real_data):
        adata = ad.read_h5ad(real_data("papalexi21_thp1_eccite.h5ad"))
        whole = {"counts": "library_size_full", "genes": "n_genes_full", "mito": "p_mito"}
        annotate_quality(adata, columns=whole, batch_key="batch", doublets=False)
        obs = adata.obs
        assert obs["quality"].eq("fail").mean() == pytest.approx(0.115, abs=0.001)
        # low counts and few genes go together; leaking cells are small
        both = obs["quality_low_counts"] & obs["quality_low_genes"]
        assert both.sum() > 0.8 * obs["quality_low_counts"].sum()
        size = obs.groupby("quality_high_mito", observed=True)["library_size_full"].median()
        assert size[True] < 0.7 * size[False]
        # no perturbation fails significantly more often than the controls, save BRD4 at the edge
        assert describe_quality(adata)["padj"].min() > 0.05
        # on the scale of counts the published threshold is below zero
        annotate_quality(adata, preset="paper", columns=whole, doublets=False)
        assert not obs["quality_low_counts"].any()

    def test_norman_haemoglobin_is_an_effect(self, real_data):
        adata = ad.read_h5ad(real_data("norman19_k562.h5ad"))
        annotate_quality(adata, columns={"counts": "library_size_full", "genes": "n_genes_full"}, doublets=False)
        table = describe_quality(adata)
        assert table.loc["KLF1", "high_hb"] > 0.7 > 0.2 > table.loc["control", "high_hb"]
