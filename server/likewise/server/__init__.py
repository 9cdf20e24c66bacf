"""The server: router, encoders, writers and their places."""
