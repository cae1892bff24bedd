"""Scores of networks: closed forms, sampling frames that depend on the network, matched edge counts."""

from __future__ import annotations

from itertools import permutations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from scvi_causal.metrics import (
    compare_grn,
    grn_auprc,
    grn_false_omission_rate,
    grn_wasserstein,
    log1p_normalize,
    pair_effects,
    rank_by_effect,
    score_grn,
)
from scvi_causal.metrics._grn_universe import AveragePrecision

NODES = list("ABCDEF")
BASELINE = "effect size (wasserstein)"
RANKINGS = ["predicted", BASELINE, "effect size (statistic)", "held-out effects", "random"]


def frame(*edges, **columns):
    return pd.DataFrame([tuple(e) for e in edges], columns=["source", "target"]).assign(**columns)


def table(n_sources=4, seed=0, p_effect=0.3):
    """Effects of A to D on A to F; the significant ones have the larger distances."""
    rng = np.random.default_rng(seed)
    pairs = pd.DataFrame([(s, t) for s in NODES[:n_sources] for t in NODES if s != t], columns=["source", "target"])
    effect = rng.random(len(pairs)) < p_effect
    pairs["wasserstein"] = rng.random(len(pairs)) + effect
    pairs["wasserstein_null"] = 0.1 * rng.random(len(pairs))
    pairs["lfc"] = pairs["wasserstein"] * rng.choice([-1, 1], len(pairs))
    pairs["statistic"] = pairs["lfc"] * 5
    pairs["padj"] = np.where(effect, 0.01, 0.5)
    return pairs


ALL = [s + t for s, t in permutations(NODES, 2)]


class TestWasserstein:
    def test_is_the_mean_over_edges_that_can_be_tested(self):
        pairs = table().set_index(["source", "target"])
        edges = frame("AB", "CF", "AA", "FB", "AZ", "ZB")  # a self-loop, an unperturbed source, unknown names
        expected = pairs.loc[[("A", "B"), ("C", "F")]]
        assert grn_wasserstein(edges, table()) == pytest.approx(expected["wasserstein"].mean())
        above = (expected["wasserstein"] - expected["wasserstein_null"]).mean()
        assert grn_wasserstein(edges, table(), excess=True) == pytest.approx(above)
        assert np.isnan(grn_wasserstein(frame("AA", "FB"), table()))
        assert np.isnan(grn_wasserstein(frame(), table()))

    def test_rows_may_come_in_any_order_and_form(self):
        edges, pairs = frame("AB", "CF", "DA"), table()
        expected = grn_wasserstein(edges, pairs)
        shuffled = pairs.sample(frac=1, random_state=0).astype({"source": "category", "target": "category"})
        assert grn_wasserstein(edges[::-1], shuffled) == pytest.approx(expected, abs=1e-15)
        unused = shuffled.assign(source=shuffled["source"].cat.add_categories("unused"))
        assert grn_wasserstein(edges, unused) == pytest.approx(expected, abs=1e-15)


class TestFalseOmissionRate:
    def test_depends_on_the_network(self):
        # check 27 of the specification: the published rate was the same for these three networks
        pairs = table()
        true = pairs[pairs["padj"] < 0.05]
        two = pairs[pairs["padj"] > 0.05].iloc[:2]
        n, k = len(pairs), len(true)
        assert 2 < k < n - 2
        assert grn_false_omission_rate(true, pairs) == 0
        assert grn_false_omission_rate(two, pairs) == pytest.approx(k / (n - 2))
        assert grn_false_omission_rate(true[1:], pairs) == pytest.approx(1 / (n - k + 1))
        assert np.isnan(grn_false_omission_rate(frame(*ALL), pairs))  # nothing is left out
        assert grn_false_omission_rate(frame(), pairs) == k / n

    def test_a_random_network_has_the_share_of_all_pairs_whatever_its_size(self):
        pairs, rng = table(seed=3), np.random.default_rng(0)
        for size in (3, 10):
            rates = [grn_false_omission_rate(pairs.iloc[rng.permutation(len(pairs))[:size]], pairs) for _ in range(400)]
            assert np.mean(rates) == pytest.approx((pairs["padj"] < 0.05).mean(), abs=4 * np.std(rates) / 20)

    @pytest.mark.parametrize("max_hops", [1, 2, 3, 5])
    def test_paths_against_a_plain_search(self, max_hops):
        pairs, rng = table(seed=1), np.random.default_rng(4)
        for _ in range(10):
            edges = frame(*rng.choice(ALL, 6, replace=False))  # sources E and F were not perturbed, yet lead on
            step = {n: set(edges.loc[edges["source"] == n, "target"]) for n in NODES}
            omitted = []
            for source, target, padj in pairs[["source", "target", "padj"]].itertuples(index=False):
                front = reached = {source} - {source}
                for hop in range(max_hops):
                    front = set().union(*(step[n] for n in ({source} if hop == 0 else front)))
                    reached = reached | front
                if target not in reached:
                    omitted.append(padj < 0.05)
            assert grn_false_omission_rate(edges, pairs, max_hops=max_hops) == pytest.approx(np.mean(omitted))

    def test_alpha_and_hops_are_checked_and_used(self):
        pairs = table()
        assert grn_false_omission_rate(frame("AB"), pairs, alpha=0.005) == 0
        for hops in (0, 1.5):
            with pytest.raises(ValueError, match=f"max_hops={hops}"):
                grn_false_omission_rate(frame("AB"), pairs, max_hops=hops)


class TestAuprc:
    def test_equals_sklearn_on_the_candidates(self):
        candidates, rng = frame(*ALL), np.random.default_rng(0)
        edges = candidates.assign(weight=rng.normal(size=len(ALL)))
        reference = candidates[rng.random(len(ALL)) < 0.3]
        kept = candidates["source"].isin(reference["source"]) & candidates["target"].isin(reference["target"])
        is_true = (candidates["source"] + candidates["target"]).isin(reference["source"] + reference["target"])
        expected = average_precision_score(is_true[kept], edges["weight"].abs()[kept])
        assert grn_auprc(edges, reference, candidates) == pytest.approx(expected)
        assert grn_auprc(edges.sample(frac=1, random_state=1), reference, candidates) == pytest.approx(expected)

    def test_closed_forms(self):
        candidates, reference = frame("AB", "AC", "AD", "BC", "BD"), frame("AB", "BC", "XD")
        # of the five candidates two are true; D is a target of the reference, so A -> D and B -> D count
        auprc = lambda *edges, **k: grn_auprc(
            frame(*edges, weight=np.arange(len(edges), 0, -1)), reference, candidates, **k
        )
        assert auprc("AB", "BC") == 1
        assert auprc("AB") == pytest.approx(0.5 + 0.5 * 2 / 5)  # the rest is one tie
        assert auprc("AC", "AB") == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 5)
        assert auprc() == 2 / 5
        assert auprc("AB", "BC", "AC", n_edges=1) == auprc("AB")
        assert auprc("CC", "ZZ", "AB") == auprc("AB")
        assert np.isnan(grn_auprc(frame("AB"), frame("XY"), candidates))
        assert grn_auprc(frame("AB", "AC"), reference, candidates) == pytest.approx(
            0.5 * 1 / 2 + 0.5 * 2 / 5
        )  # no weight

    def test_another_column_ranks(self):
        candidates, reference = frame("AB", "AC", "BC"), frame("AB", "XC", "BX")
        edges = frame("AB", "AC", weight=[1.0, 2.0], probability=[0.9, 0.1])
        assert (
            grn_auprc(edges, reference, candidates) < grn_auprc(edges, reference, candidates, score="probability") == 1
        )
        with pytest.raises(ValueError, match="score='p' is no column of the edges"):
            grn_auprc(edges, reference, candidates, score="p")


class TestScore:
    def test_numbers_are_those_of_the_functions(self):
        pairs, training = table(), table(seed=5)
        edges = frame("AB", "CF", "DA", "BC", "AA", "FB", weight=[-5.0, 4.0, 3.0, 2.0, 9.0, 9.0])
        reference = frame("AB", "BC", "CF", "DF", "AF")
        scores = score_grn(edges, pairs, training, reference=reference)
        assert scores.index.tolist() == [(4, name) for name in RANKINGS]
        for name, ranked in {"predicted": edges, BASELINE: rank_by_effect(training)[:4]}.items():
            row = scores.loc[(4, name)]
            assert row["wasserstein"] == pytest.approx(grn_wasserstein(ranked, pairs))
            assert row["excess"] == pytest.approx(grn_wasserstein(ranked, pairs, excess=True))
            assert row["false_omission_rate"] == pytest.approx(grn_false_omission_rate(ranked, pairs))
        predicted = scores.loc[(4, "predicted")]
        assert predicted["auprc_reference"] == pytest.approx(grn_auprc(edges, reference, pairs))
        # A and D to B, C, F and B to C, F, C to B, F: of the edges, A -> B, C -> F and B -> C are there, all true
        assert predicted["precision_reference"] == 1
        chance = scores.loc[(4, "random")]
        assert chance["wasserstein"] == pytest.approx(pairs["wasserstein"].mean())
        assert chance["significant"] == chance["false_omission_rate"] == (pairs["padj"] < 0.05).mean()
        best = scores.loc[(4, "held-out effects")]
        assert best["wasserstein"] == pytest.approx(pairs["wasserstein"].nlargest(4).mean())
        assert (scores["wasserstein"] <= best["wasserstein"] + 1e-12).all()

    def test_all_rankings_are_cut_at_the_same_number_of_edges(self):
        pairs, training = table(), table(seed=5)
        many, few = rank_by_effect(table(seed=6)), rank_by_effect(table(seed=7))[:5]
        scores = score_grn({"many": many, "few": few}, pairs, training)
        assert scores.index.get_level_values("n_edges").unique().tolist() == [5]
        alone = score_grn(many[:5], pairs, training)
        np.testing.assert_allclose(scores.loc[(5, "many")], alone.loc[(5, "predicted")])
        assert scores["edges"].eq(5).all()
        assert score_grn({"few": few}, pairs, training, n_edges=7)["edges"].tolist() == [5, 7, 7, 7, 7]
        several = score_grn(many, pairs, training, n_edges=[2, 8])
        assert several.index.get_level_values("n_edges").unique().tolist() == [2, 8]
        np.testing.assert_allclose(
            several.loc[(2, "predicted")], score_grn(many[:2], pairs, training).loc[(2, "predicted")]
        )

    def test_edges_that_tie_count_in_part_so_that_rows_may_come_in_any_order(self):
        pairs, training = table(), table(seed=5)
        edges = frame("AB", "AC", "AD", "BC", "BD", weight=[2.0, 1.0, 1.0, 1.0, 1.0])
        scores = [score_grn(e, pairs, training, n_edges=3).loc[(3, "predicted")] for e in (edges, edges[::-1])]
        np.testing.assert_allclose(*scores)
        distance = pairs.set_index(["source", "target"])["wasserstein"]
        tied = distance[[("A", "C"), ("A", "D"), ("B", "C"), ("B", "D")]].mean()
        assert scores[0]["wasserstein"] == pytest.approx((distance["A", "B"] + 2 * tied) / 3)

    def test_paths_below_the_cut_do_not_count(self):
        pairs, training = table(), table(seed=5)
        edges = frame("AB", "BC", "EF", weight=[3.0, 2.0, 1.0])
        cut = score_grn(edges, pairs, training, n_edges=1, max_hops=2).loc[(1, "predicted"), "false_omission_rate"]
        assert cut == pytest.approx(grn_false_omission_rate(edges.iloc[[0, 2]], pairs, max_hops=2))

    def test_finds_the_network_that_beats_the_effect_size_and_the_one_that_does_not(self):
        """A chain A -> B -> C -> ... that hands effects on in full: their size does not tell direct from indirect."""
        rng = np.random.default_rng(0)
        labels = np.repeat(["control", *NODES], 300)
        x = np.zeros((len(labels), 6))
        for i, node in enumerate(NODES):
            x[:, i] = (x[:, i - 1] if i else 0) + rng.normal(size=len(labels)) - 3 * (labels == node)
        half = rng.random(len(labels)) < 0.5
        held_out, training = (pair_effects(x[h], labels[h], NODES) for h in (~half, half))
        chain = frame("AB", "BC", "CD", "DE", "EF")
        against_truth = score_grn(chain, held_out, training, reference=chain)["auprc_reference"].droplevel("n_edges")
        assert against_truth["predicted"] == 1
        assert against_truth["predicted"] > against_truth[BASELINE] + 0.05
        backwards = chain.rename(columns={"source": "target", "target": "source"})
        scores = score_grn(backwards, held_out, training).droplevel("n_edges")
        assert scores.loc["predicted", "significant"] < 0.3 < 0.99 < scores.loc[BASELINE, "significant"]
        assert scores.loc["predicted", "excess"] == pytest.approx(0, abs=0.05)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"predicted": frame("FA", "AA")},
                r"No edge of \['predicted'\] can be tested.*4 perturbed genes.*6 measured",
            ),
            ({"predicted": frame("AB", "AB")}, "1 of 2 edges are listed twice, e.g. A -> B"),
            ({"predicted": frame("AB", weight=[np.nan])}, "1 of 1 edges have no 'weight'"),
            (
                {"predicted": {"random": frame("AB")}},
                r"the names \['random'\] are those of the rankings that are added",
            ),
            ({"predicted": pd.DataFrame({"tf": ["A"]})}, "columns source and target; got"),
            ({"held_out": frame("AB")}, "held_out: expected a table of scvi_causal.metrics.pair_effects"),
            ({"training": frame("AB")}, "training: expected a table"),
            ({"held_out": table().iloc[:0]}, "held_out: there is no pair"),
        ],
    )
    def test_what_is_wrong_is_named(self, change, message):
        arguments = {"predicted": frame("AB"), "held_out": table(), "training": table()} | change
        with pytest.raises(ValueError, match=message):
            score_grn(**arguments)

    def test_one_pair_and_no_effect_at_all(self):
        pairs = table().iloc[:1].assign(padj=1.0)
        scores = score_grn(frame("AB"), pairs, pairs)
        assert scores["wasserstein"].nunique() == 1
        assert scores["auprc_effects"].isna()[:-1].all()
        assert scores["significant"].eq(0).all()
        assert np.isnan(scores.loc[(1, "predicted"), "false_omission_rate"])  # nothing is left out


def test_average_precision_with_ties_and_weights_equals_sklearn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ranked, is_true, times = rng.integers(0, 6, 40), rng.random(40) < 0.3, rng.integers(0, 3, 40).astype(float)
        expected = average_precision_score(is_true, ranked, sample_weight=times)
        assert AveragePrecision(ranked, is_true)(times) == pytest.approx(expected)
    assert np.isnan(AveragePrecision(ranked, np.zeros(40, dtype=bool))())
    assert np.isnan(AveragePrecision(ranked[:0], is_true[:0])())


class TestCompare:
    def wide(self, n_sources=12, seed=0):
        """Two targets per source, X and Y; X has the effects."""
        rng = np.random.default_rng(seed)
        pairs = frame(*((f"s{i}", t) for i in range(n_sources) for t in "XY"))
        distance = rng.random(len(pairs)) + np.tile([1.0, 0.0], n_sources)
        padj = np.where(np.tile([True, False], n_sources), 0.01, 0.9)
        return pairs.assign(wasserstein=distance, wasserstein_null=0.1, lfc=distance, statistic=distance, padj=padj)

    def test_a_ranking_is_no_better_than_itself(self):
        pairs = self.wide()
        table = compare_grn(rank_by_effect(pairs), pairs, pairs, by="wasserstein", n_edges=9, reference=pairs[::2])
        assert table.index.get_level_values("number").tolist()[-1] == "auprc_reference"
        assert table.loc[BASELINE, ["difference", "low", "high"]].dropna().eq(0).all(axis=None)
        assert not table["better"].any()

    def test_intervals_are_those_of_a_mean_over_sources(self):
        # one edge per source on both sides: the difference is a mean of independent differences
        pairs = self.wide(n_sources=40)
        training = pairs.assign(wasserstein=np.tile([0.0, 1.0], 40))  # the wrong targets
        table = compare_grn(pairs[::2].assign(weight=1.0), pairs, training, by="wasserstein", n_bootstrap=2000)
        row = table.loc[(BASELINE, "wasserstein")]
        gain = pairs["wasserstein"].to_numpy()[::2] - pairs["wasserstein"].to_numpy()[1::2]
        assert row["difference"] == pytest.approx(gain.mean())
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * gain.std() / np.sqrt(40), rel=0.08)
        assert row["better"]
        # smaller is better here, and the sign says so
        assert table.loc[(BASELINE, "false_omission_rate"), ["predicted", "baseline_value", "difference"]].tolist() == [
            0,
            1,
            1,
        ]
        assert table.loc[(BASELINE, "auprc_effects"), "difference"] > 0.4

    def test_values_are_those_of_the_score(self):
        pairs, training, edges = table(), table(seed=5), frame("AB", "CF", "DA", weight=[3.0, 2.0, 1.0])
        scores = score_grn(edges, pairs, training, reference=frame("AB", "DF")).droplevel("n_edges")
        compared = compare_grn(edges, pairs, training, reference=frame("AB", "DF"), n_bootstrap=3)
        for (baseline, number), row in compared.iterrows():
            expected = scores.loc[["predicted", baseline], number]
            np.testing.assert_allclose(row[["predicted", "baseline_value"]].astype(float), expected)
        assert compared[["low", "high"]].isna().all(axis=None)  # four sources say nothing about others
        assert not compared["better"].any()

    def test_seed_and_untestable_edges(self):
        pairs = self.wide()
        edges = pairs[::3].assign(weight=1.0)
        first, again, other = (compare_grn(edges, pairs, self.wide(seed=1), n_bootstrap=20, seed=s) for s in (0, 0, 1))
        pd.testing.assert_frame_equal(first, again)
        assert not first["low"].equals(other["low"])
        with pytest.raises(ValueError, match="No predicted edge can be tested"):
            compare_grn(frame("XY"), pairs, pairs)


@pytest.mark.real_data
def test_papalexi_effect_size_of_other_cells_is_close_to_the_upper_bound(real_data):
    adata = ad.read_h5ad(real_data("papalexi21_thp1_eccite.h5ad"))
    x = log1p_normalize(adata.X, adata.obs["library_size_full"].to_numpy())
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    held_out, training = (pair_effects(x[h], labels[h], adata.var_names) for h in (~half, half))
    predicted = frame(("STAT1", "PSMB9"), ("IFNGR1", "PSMB9"), ("MYC", "UBE2L6"), weight=[3.0, 2.0, 1.0])
    scores = score_grn(predicted, held_out, training, n_edges=[3, 100]).sort_index()
    assert (scores.loc[(3, BASELINE)] > scores.loc[(3, "random")]).drop(["edges", "false_omission_rate"]).all()
    ratio = scores.loc[(100, BASELINE), "wasserstein"] / scores.loc[(100, "held-out effects"), "wasserstein"]
    assert 0.8 < ratio <= 1
