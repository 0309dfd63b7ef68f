"""Datasets: tokens, captions, indexed features, pixels."""
