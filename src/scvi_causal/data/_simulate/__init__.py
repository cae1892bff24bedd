"""Simulated screens with a known causal graph and known effects."""

from ._drugs import DrugSimulation, simulate_drugs
from ._graphs import corrupt_grn, degree_matched_random_grn, grn_overlap, random_grn, topological_order
from ._mechanisms import MechanismSimulation, simulate_mechanisms
from ._screen import Simulation, simulate_screen

__all__ = [
    "DrugSimulation",
    "MechanismSimulation",
    "Simulation",
    "corrupt_grn",
    "degree_matched_random_grn",
    "grn_overlap",
    "random_grn",
    "simulate_drugs",
    "simulate_mechanisms",
    "simulate_screen",
    "topological_order",
]
