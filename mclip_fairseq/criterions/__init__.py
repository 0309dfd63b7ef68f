"""fairseq criterions: thin glue around `losses`."""
