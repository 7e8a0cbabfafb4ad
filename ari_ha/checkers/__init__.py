"""What must be true of the values in etcd, whoever wrote them: pure rules, the same for the simulator's
store and for the etcd of the container lab."""
