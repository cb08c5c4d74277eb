"""``train-head``: the Dense head, its cross-check, the choice between them, the one test."""
