"""The command line: light to import, clear when something is wrong, and the whole way on a tiny screen."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import pandas as pd
import pytest

from scvi_causal import cli, datasets
from scvi_causal._demo import _options
from scvi_causal.data import simulate_screen


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """Six perturbations and a few combinations in 30 genes, and the file they are in."""
    simulation = simulate_screen(
        n_genes=30, n_perturbations=6, n_combinations=2, n_cells_per_perturbation=40, n_control=80, seed=0
    )
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    simulation.adata.write_h5ad(path)
    return simulation.adata, path


@pytest.mark.parametrize(("command", "option"), [("demo", "--holdout"), ("benchmark", "--engine")])
def test_parsing_and_help_need_no_torch(command, option):
    code = (
        "import sys; from scvi_causal import cli\n"
        f"try: cli.main(['{command}', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'scvi', 'scanpy', 'anndata', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demonstrate"],
        ["demo", "--max-epochs", "0"],
        ["demo", "--seed", "x"],
        ["benchmark", "x.h5ad", "--task", "unsee"],
        ["benchmark", "x.h5ad", "--workers", "0"],
        ["benchmark", "x.h5ad", "--engine", "dask"],
    ],
)
def test_wrong_usage_ends_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_wrong_data_is_one_line_without_a_traceback(screen, tmp_path, capsys):
    adata, path = screen
    token = sorted(set(adata.obs["perturbation"]) - {"control"})[0]
    for arguments, message in [
        (["--data", tmp_path / "nowhere.h5ad", "--holdout", "A"], "There is no file"),
        (["--data", path], "--holdout is needed"),
        (["--data", path, "--holdout", token + "x"], "Similar perturbations"),
        (["--data", path, "--holdout", token, "--perturbation-key", "perturb"], "similar: perturbation"),
        (["--data", path, "--holdout", token, "--control", "NT"], "Name the control label with --control"),
    ]:
        status, _, err = run(capsys, "demo", "--out", tmp_path / "out", *arguments)
        assert status == 2
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(screen, tmp_path, capsys):
    adata, path = screen
    token = sorted(set(adata.obs["perturbation"]) - {"control"})[0]
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "demo", "--data", path, "--holdout", token, "--out", tmp_path / "file")
    assert status == 2
    assert "file" in err


@pytest.mark.slow
def test_unseen_perturbation_on_own_data(screen, tmp_path, capsys):
    adata, path = screen
    combination = next(label for label in adata.obs["perturbation"].unique() if "+" in label)
    out = tmp_path / "out"
    status, printed, err = run(
        capsys, "demo", "--data", path, "--holdout", combination, "--out", out, "--max-epochs", 2, "--seed", 3
    )
    assert status == 0
    assert "Traceback" not in err
    assert "Warning" not in err
    table = pd.read_csv(out / "table.csv", index_col="model")
    assert list(table.index[:2]) == ["SCCVAE", "ControlMean"]
    assert table.index[-1] == "noise ceiling"
    assert {"Additive", "PerturbedMean"} <= set(table.index)
    for name in table.index:
        assert f"\n{name} " in printed
    results = ad.read_h5ad(out / "results.h5ad")
    assert "counterfactual" in results.layers
    assert results.obsm["X_sccvae"].shape[0] == results.n_obs
    assert "counterfactual" in results.uns["scvi_causal"]
    assert not [key for key in [*results.obs, *results.obsm, *results.uns] if key.startswith("_scvi")]
    assert "--seed 3" in (out / "report.html").read_text()


@pytest.mark.slow
def test_the_example(tmp_path, capsys, monkeypatch):
    small = datasets.kang18(n_cells=1200)
    monkeypatch.setattr(datasets, "kang18", lambda: small)
    status, printed, err = run(capsys, "demo", "--out", tmp_path / "out", "--max-epochs", 2)
    assert status == 0
    assert "Warning" not in err
    assert _options.EXAMPLE_HOLDOUT.replace("=", " = ") in printed
    table = pd.read_csv(tmp_path / "out" / "table.csv", index_col="model")
    assert list(table.index) == ["SCCVAE", "ControlMean", "Additive", "noise ceiling"]
    # these two do not depend on any training
    assert table.loc["ControlMean", "mse_ratio"] == pytest.approx(1, abs=0.05)
    assert table.loc["Additive", "pearson_effect"] > 0.7


# ---------------------------------------------------------------------- benchmark


def test_benchmark_on_own_data(screen, tmp_path, capsys):
    _, path = screen
    out = tmp_path / "out"
    arguments = ["benchmark", path, "--models", "ControlMean", "Additive", "--out", out, "--folds", 2]
    status, printed, err = run(capsys, *arguments)
    assert status == 0
    assert err == ""
    assert "6 jobs\n[1/6] noise ceiling, fold 0, seed 0\n" in printed
    for name in ("ControlMean", "Additive", "noise ceiling"):
        assert f"\n{name} " in printed
    assert f"Report: {out / 'report.html'}" in printed
    assert "scvi-causal benchmark" in (out / "report.md").read_text()
    status, printed, _ = run(capsys, *arguments, "--seeds", 0, 1)
    assert status == 0
    assert "12 jobs, 6 of them done before" in printed


def test_benchmark_of_the_example_by_context(tmp_path, capsys, monkeypatch):
    small = datasets.kang18(n_cells=800)
    monkeypatch.setattr(datasets, "kang18", lambda: small)
    status, printed, err = run(
        capsys, "benchmark", "kang18", "--task", "context", "--covariate-key", "cell_type", "--size-factor-key",
        "library_size_full", "--holdout", "CD4 T", "--models", "Additive", "--out", tmp_path / "out", "--no-report",
    )  # fmt: skip
    assert status == 0, err
    assert "\nAdditive " in printed
    assert not (tmp_path / "out" / "report.html").exists()
    (table,) = (tmp_path / "out" / "jobs").glob("Additive*.parquet")
    assert pd.read_parquet(table)["context"].tolist() == ["CD4 T"]


def test_benchmark_of_a_model_from_a_module(screen, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "class Broken:\n    def fit(self, adata):\n        raise ValueError('no data')\n    predict = fit\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    models = ["mine:Broken", "ControlMean"]
    status, printed, _ = run(
        capsys, "benchmark", screen[1], "--models", *models, "--out", tmp_path / "out", "--folds", 2
    )
    assert status == 0
    assert "Broken, fold 0, seed 0: failed: ValueError: no data" in printed
    assert f"Failed, in part or altogether: Broken; tracebacks are in {tmp_path / 'out' / 'tracebacks'}." in printed


def test_wrong_benchmarks_are_one_line(screen, tmp_path, capsys):
    _, path = screen
    out = ["--out", tmp_path / "out"]
    for arguments, message in [
        ([], "FILE and --out are needed"),
        ([path], "--out is needed"),
        ([tmp_path / "scren.h5ad", *out], "There is no file"),
        ([path, *out, "--perturbation-key", "perturb"], "no column 'perturb'. Did you mean 'perturbation'?"),
        ([path, *out, "--control", "NT"], "Pass --control."),
        ([path, *out, "--size-factor-key", "librari"], "Did you mean 'library'?"),
        ([path, *out, "--task", "context"], "needs --context-key"),
        ([path, *out, "--models", "Aditive"], "Did you mean 'Additive'?"),
        ([path, *out, "--models", "nowhere:Model"], "cannot be imported"),
        (
            [path, *out, "--task", "context-perturbation", "--context-key", "batch", "--holdout", "A"],
            "PERTURBATION@CONTEXT",
        ),
    ]:
        status, _, err = run(capsys, "benchmark", *arguments)
        assert status == 2
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_benchmark(screen, tmp_path, capsys):
    arguments = ["benchmark", screen[1], "--models", "ControlMean", "--no-report", "--out", tmp_path / "out"]
    assert run(capsys, *arguments, "--folds", 2)[0] == 0
    status, _, err = run(capsys, *arguments, "--folds", 3)
    assert status == 2
    assert "--folds=2 there, 3 now" in err
    assert "choose another folder with --out" in err


def test_a_stopped_benchmark_says_how_to_go_on(screen, tmp_path, capsys, monkeypatch):
    from scvi_causal.benchmark import _run

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "run_job", stop)
    status, printed, err = run(capsys, "benchmark", screen[1], "--models", "ControlMean", "--out", tmp_path / "out")
    assert status == 130
    assert err == ""
    assert "the same command goes on" in printed


def test_models_are_listed(capsys):
    status, printed, _ = run(capsys, "benchmark", "--list-models")
    assert status == 0
    names = [line.split()[0] for line in printed.splitlines()]
    assert {"SCCVAE", "ControlMean", "LinearEffect"} <= set(names)
    assert ":cite:" not in printed


def test_pairs_to_hold_out():
    from scvi_causal._cli._benchmark import _units

    assert _units(["STAT1@K562", "A@b@c"], "context-perturbation") == [("STAT1", "K562"), ("A", "b@c")]
    assert _units(["STAT1"], "unseen") == ["STAT1"]
    assert _units(None, "unseen") is None
