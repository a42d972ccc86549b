"""Scenes: a video as a graph of planar atlases that move in space."""
