"""What a run of several days needs: exact resume, clean stops on signals, and faults that end a run cleanly."""
