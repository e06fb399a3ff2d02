"""Model families: what their checkpoints mean."""
