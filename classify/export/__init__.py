"""Export a run as one model, from raw RGB images to probabilities, and prove that it agrees."""
