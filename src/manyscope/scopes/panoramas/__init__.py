"""360-degree pictures, questions about them, and the model that answers."""
