"""``predict-images``: new images classified with a run, or with an exported model."""
