"""HTTP/1.1 on one connection. Knows nothing of ads."""
