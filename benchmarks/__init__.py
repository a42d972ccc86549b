"""Measurements of Manyscope beside public peers; see README.md."""
