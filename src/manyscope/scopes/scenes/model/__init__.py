"""The graph of planes, its fields, training and rendering."""
