"""Cluster mode: a controller that places shards, writers and encoders on Ray, and routers that follow it over gRPC."""
