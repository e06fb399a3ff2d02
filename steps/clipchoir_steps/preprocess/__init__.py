"""Encoded images -> pixels."""
