"""Encoders and label sets -> a model repository."""
