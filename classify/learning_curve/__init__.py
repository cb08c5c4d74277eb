"""Accuracy against the number of labeled images, and how many a target accuracy would take."""
