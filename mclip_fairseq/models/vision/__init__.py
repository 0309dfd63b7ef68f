"""Image towers of our own; fairseq imports this package with every plugin, so nothing is imported here."""
