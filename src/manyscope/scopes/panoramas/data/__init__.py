"""Tables of questions and pictures, from source to prepared arrays."""
