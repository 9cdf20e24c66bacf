"""Several replicas of a shard behind one `ShardSearch`: choice, hedging, failover, ejection and return."""
