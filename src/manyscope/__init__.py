"""Manyscope: one chain from raw instrument data to a model, a map, a searchable index and an honest score."""

__version__ = "0.1.0"
