"""The watcher: beside each database server; replication, failover, and its health."""
