#!/usr/bin/env bash
# Environments of the peers, one folder each, since no two of them can live in one.
#
#     benchmarks/peers/install.sh                  # all
#     benchmarks/peers/install.sh scouter gears    # some
#
# Folder: SCVI_CAUSAL_PEERS, by default benchmarks/runs/peers (git ignores it). Python: PYTHON, by default python3.11; the
# pins of GEARS and CPA have no wheels for newer ones. PIP_ARGS, UV_ARGS: further arguments, e.g. an index whose
# torch brings no CUDA along. Takes 2 to 7 minutes and 2 to 6 GB each.
set -euo pipefail

root="${SCVI_CAUSAL_PEERS:-$(cd "$(dirname "$0")/.." && pwd)/runs/peers}"
python="${PYTHON:-python3.11}"
read -r -a pip_args <<< "${PIP_ARGS:-}"
read -r -a uv_args <<< "${UV_ARGS:-}"

install() { # environment, requirements
    "$root/$1/bin/python" -m pip install --quiet ${pip_args[@]+"${pip_args[@]}"} "${@:2}"
}

scouter() { install scouter torch==2.13.0 scouter-learn==0.1.10; }

# pertpy 1.0.3 is the last for Python 3.11, and does not import with statsmodels 0.15
scgen() { install scgen torch==2.13.0 scvi-tools==1.4.2 anndata==0.12.19 numpy==2.4.6 pertpy==1.0.3 "statsmodels<0.15"; }

# GEARS uses what scipy 1.14, anndata 0.11 and numpy 2 took away
gears() {
    install gears torch==2.13.0
    install gears cell-gears==0.1.2 torch_geometric "numpy<2" "scipy<1.14" "anndata<0.11" "scanpy<1.11" "pandas<2.3"
}

# 0.8.8 says that it wants a Python before 3.11 and does without: uv overlooks that, pip takes 0.8.1, which does not import
cpa() {
    install cpa uv
    "$root/cpa/bin/uv" pip install --quiet ${uv_args[@]+"${uv_args[@]}"} --python "$root/cpa/bin/python" "cpa-tools==0.8.8" \
        "pyarrow<17" "scikit-learn<1.6" "pandas<2.2" "numba<0.60" "matplotlib<3.9" "numpy==1.23.5"
}

for peer in "${@:-scouter scgen gears cpa}"; do for name in $peer; do
    case "$name" in scouter | scgen | gears | cpa) ;; *) echo "no recipe for $name" >&2 && exit 2 ;; esac
    if [ -e "$root/$name/.installed" ]; then echo "$name: installed already in $root/$name" && continue; fi
    mkdir -p "$root" && "$python" -m venv "$root/$name"
    "$name"
    # the runner looks for this file: an environment whose installation was stopped is not taken for one
    "$root/$name/bin/python" -m pip freeze > "$root/$name/.installed"
    echo "$name: installed in $root/$name"
done; done
