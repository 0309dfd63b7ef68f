"""fairseq models, their towers and projectors."""
