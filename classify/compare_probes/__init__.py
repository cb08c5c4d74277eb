"""Probes on one or more caches, side by side: tuned on validation, scored on the test once."""
