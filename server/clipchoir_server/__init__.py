"""Starts and watches a real tritonserver on a model repository, without Docker."""
