"""Learn from cached features: heads, probes, honest selection and the figures they get."""
