"""Fitted models read back to predict with, by NumPy alone.

Importing scikit-learn or TensorFlow takes longer than classifying a thousand images, and a head or
a linear probe that only predicts is a few products. So nothing here imports either.
"""
