"""Which rows a model learns from, which it is chosen on, and the test, whose labels open once."""
