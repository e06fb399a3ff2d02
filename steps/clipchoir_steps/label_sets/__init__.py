"""Label sets: their rules, their prompts and the text embeddings of these."""
