"""Metrics: pure functions on features and scores."""
