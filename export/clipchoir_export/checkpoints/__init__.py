"""Checkpoints as files: found, downloaded, opened, read, checked."""
