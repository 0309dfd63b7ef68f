"""The console scripts, each a thin `main`."""
