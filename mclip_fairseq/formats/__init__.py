"""What models are stored in, read and written: one file a format, each giving or taking a `Tower`."""
