"""Videos and masks, from source to prepared arrays with an initial placement."""
