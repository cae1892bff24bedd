"""The report of a benchmark: one Markdown file with small pictures, and one HTML file that needs no other."""

from ._write import write_report

__all__ = ["write_report"]
