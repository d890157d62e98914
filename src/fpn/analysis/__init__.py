"""Measurements of trained detectors that answer what a reader of the paper asks next."""
