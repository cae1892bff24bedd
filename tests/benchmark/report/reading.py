"""A run as the report sees it, and readers of what it writes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd


def run(results, ceiling, effects=None, missing=(), **config):
    config = {"task": "unseen", "command": "scvi-causal benchmark screen.h5ad", "commit": "abc1234"} | config
    return SimpleNamespace(results=results, ceiling=ceiling, config=config, effects=effects, missing=list(missing))


def effects_of(results, n_genes=40):
    """What a run keeps of effects, for whatever populations are asked for."""

    def read(populations):
        rng = np.random.default_rng(0)
        models = ["observed", *results["model"].unique()]
        index = [(m, s, 0, *p) for p in populations for m in models for s in sorted(results["seed"].unique())]
        names = ["model", "seed", "fold", "perturbation", "context"]
        table = pd.DataFrame(
            rng.normal(size=(len(index), n_genes)), index=pd.MultiIndex.from_tuples(index, names=names)
        )
        return table.set_axis([f"G{i}" for i in range(n_genes)], axis=1)

    return read


def rows_of(text: str, header: str) -> list[list[str]]:
    """Rows of the first Markdown table whose header starts with ``header``."""
    lines = text[text.index(f"| {header}") :].splitlines()
    table = lines[2 : next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


class Reader(HTMLParser):
    """Tags in balance, addresses, and text."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_html(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader
