"""The vision-language model, its parts, training in stages, and answers."""
