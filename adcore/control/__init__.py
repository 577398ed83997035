"""What operators ask of a running process, on a listener of its own."""
