"""The scope `cells`: microscopy, a Segment Anything model fine-tuned to it, and every cell that it finds."""
