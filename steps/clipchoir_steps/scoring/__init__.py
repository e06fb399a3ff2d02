"""Embeddings -> the public outputs."""
