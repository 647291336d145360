"""Ask a judge model about pictures. Every reply is recorded before it counts."""
