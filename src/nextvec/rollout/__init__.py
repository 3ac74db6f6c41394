"""Canary rollouts: which evidence counts, what it proves, and which step follows. No HTTP, no engine.

Terms of this package, each used in one sense:

* **Arm**: ``stable``, the model that answers now (the control arm), or ``canary``, the model that may replace it.
* **Weight**: percent of the sessions that are assigned to the canary.
* **Canary step**: a phase of a rollout with one weight, a minimum time and a minimum number of units.
* **Shadow**: the phase before the first step. Stable answers; the canary answers copies of the requests (**mirrored pairs**).
* **Unit**: one session on one arm; it counts at most once in each stream, as a :class:`~nextvec.rollout.evidence.UnitOutcome`.
* **Stream**: the outcomes of one guardrail metric: ``fail``, ``slow``, ``miss``, ``unlabelled`` or ``assign``.
* **Guardrail**: what a stream tolerates (:mod:`nextvec.rollout.guardrails`).
* **E-value**: evidence that may be checked after every unit; without harm it ever reaches 1/alpha with probability at most
  alpha (:mod:`nextvec.rollout.evalues`).
* **Ledger**: the database of rollouts; its rows are linked by hashes (:mod:`nextvec.rollout.ledger`).
* **Controller**: the process that judges and moves one rollout. **Follower**: a router's view of it.
"""
