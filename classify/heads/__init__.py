"""Dense heads on cached features: one trained by Keras, or hundreds of them in one pass."""

from classify.heads.dense import DenseHead

__all__ = ["DenseHead"]
