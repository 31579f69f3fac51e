"""From measured terms to the stochastic differential equation of the log-norms, its statistics and its paths."""

from lipadvisor.dynamics.attribution import PARTS, Attribution, attribute, attribute_recorded, attributed_growth
from lipadvisor.dynamics.coefficients import Coefficients, Form, Noise, coefficients, log_decay, network_lr
from lipadvisor.dynamics.ensemble import EnsembleChange, ensemble_change
from lipadvisor.dynamics.expansion import expansion_factor, map_expansion, stability_limit
from lipadvisor.dynamics.noise import NoiseSplit, batches_of, clipped, finite_population, noise_split
from lipadvisor.dynamics.reconstruction import Reconstruction
from lipadvisor.dynamics.response import Response, response, squared_response_sums
from lipadvisor.dynamics.simulation import simulate
from lipadvisor.dynamics.statistics import LogNormal, integral_form

__all__ = [
    "PARTS",
    "Attribution",
    "Coefficients",
    "EnsembleChange",
    "Form",
    "LogNormal",
    "Noise",
    "NoiseSplit",
    "Reconstruction",
    "Response",
    "attribute",
    "attribute_recorded",
    "attributed_growth",
    "batches_of",
    "clipped",
    "coefficients",
    "ensemble_change",
    "expansion_factor",
    "finite_population",
    "integral_form",
    "log_decay",
    "map_expansion",
    "network_lr",
    "noise_split",
    "response",
    "simulate",
    "squared_response_sums",
    "stability_limit",
]
