"""From raw pixels to prepared stamps: sources, preparation, loading."""
