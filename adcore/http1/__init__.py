"""HTTP/1.1 on a connection: bytes to requests, answers to bytes, and the time and order in between. Knows no ads."""
