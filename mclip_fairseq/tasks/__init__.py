"""fairseq tasks: what a training step sees."""
