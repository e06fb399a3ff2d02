"""Checkpoint -> Triton model repository."""
