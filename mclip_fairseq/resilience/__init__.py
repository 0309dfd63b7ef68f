"""What a run of days needs: checkpoints that survive, exact resumption, signals, and batches that are not finite."""
