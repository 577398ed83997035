"""What operators run around the server: the one command `adctl`."""
