"""Simulated rollouts: how often a canary without harm is rolled back, and how soon a harmful one is.

A request has one outcome on each arm, and only the outcome on the assigned arm happens. So many rollouts over the same traffic
are many random assignments of its sessions, and recorded traffic can be used as well as generated traffic.

The simulation runs many rollouts side by side as arrays with one row per rollout. Bets, e-values, verdicts, thresholds and the
step rule are the production functions; only the selection of units is vectorised (:mod:`.selection`), and a test compares it,
outcome by outcome, with :class:`~nextvec.rollout.units.Units`.

Differences from a server: buckets come from a random generator instead of a hash, the request of a session that counts is the
same in all rollouts over the same traffic, a controller ticks after a fixed number of requests, a label arrives with its
prediction, a session closes with its last request, ``slow`` has no mirrored pairs, and no person intervenes.
"""
