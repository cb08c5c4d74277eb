"""``sweep-heads``: many configurations of the head side by side, and the best of them as a run."""
