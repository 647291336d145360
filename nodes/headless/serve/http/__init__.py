"""HTTP: connections, access control, requests, responses and files."""
