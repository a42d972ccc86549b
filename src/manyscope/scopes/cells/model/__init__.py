"""The Segment Anything model: building, training through micro_sam, exporting, segmenting."""
