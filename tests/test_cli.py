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


def test_parsing_and_help_need_no_torch():
    code = (
        "import sys; from scvi_causal import cli\n"
        "try: cli.main(['demo', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'scvi', 'scanpy', 'anndata', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--holdout" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["demonstrate"], ["demo", "--max-epochs", "0"], ["demo", "--seed", "x"]])
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
