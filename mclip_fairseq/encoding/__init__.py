"""Bulk encoding of images and texts: galleries, captions, and the cache of features."""
