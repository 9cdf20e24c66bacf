"""The server's seams over gRPC: servicers around shards, writers and encoders, and stubs that stand for them."""
