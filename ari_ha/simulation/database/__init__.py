"""A pair of database servers in memory, their real watchers, clients that remember every
confirmed write, and everything that goes wrong with them."""
