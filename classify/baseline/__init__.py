"""The baseline: a small convolutional network that learns from pixels alone, without a backbone."""
