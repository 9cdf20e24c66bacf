"""One module a peer: how it stores the rows and how a caller asks it. Each is imported in its own environment only."""
