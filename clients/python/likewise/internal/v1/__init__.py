"""Generated from the protos; see the proto target of the Makefile."""
