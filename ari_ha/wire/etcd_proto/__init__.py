"""etcd's wire messages (see etcd.proto)."""
