"""Datasets: tokens, captions and their columns, pixels, sampling."""
