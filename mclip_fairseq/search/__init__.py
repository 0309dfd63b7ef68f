"""Search pictures in any language: a directory with a faiss index, its rows and the model it belongs to.

`build` and `change` make one, `SearchIndex` reads it, `query` asks it from the command line and `server` from a page.
"""
