"""The process border: fork server, messages, and both ends of the socket."""
