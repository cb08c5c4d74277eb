"""Runs side by side: what each reaches on the test, and which differences are beyond chance."""
