"""Search images in any language: a directory with a faiss index, its rows and the model it belongs to.

`build` and `change` write one, `SearchIndex` reads it, `query` searches it from the command line and `server` serves a
page.
"""
