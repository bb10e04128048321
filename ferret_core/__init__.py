"""Ferret: a multimodal language model that takes any pointing and answers with boxes. Needs no server.

from ferret_core.predictor import FerretPredictor
from ferret_core.geometry import Point, Box, Polygon, Scribble, Mask
"""
