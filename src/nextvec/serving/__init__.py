"""Serving: HTTP, sessions on disk, model states in memory, several models, and rollouts.

A context (the vectors of a session) is authoritative and lies in an append log; a model's state is a cache of it. A switch
of models, an eviction, a reload and a restart therefore have one effect: a missing state, which is rebuilt. Modules import
in the order of the groups below; ``service`` knows no HTTP, and ``app`` knows little else.

**Engines.** ``answering`` is the protocol of an engine: :class:`nextvec.inference.Engine` satisfies it in this process, and
``isolated_engine`` in a process of its own (``engine_process`` starts and supervises it, ``engine_child`` is its side,
``engine_messages`` the format between them). ``request_queue`` batches the requests of one engine; ``round_robin`` runs
long jobs in turns on one thread, such as ``text_encoding``; ``daemon_thread`` runs calls that may hang.

**Contexts and states.** ``contexts`` is the index of all sessions over ``context_log`` (segments on disk),
``context_record`` (the bytes of a record) and ``context_view`` (reading one context, and whole contexts as one record).
``state_cache`` holds model states, ``state_rebuild`` brings them up to date, ``session_transfer`` packs a context and a
state for another server.

**Models.** ``model_loading`` opens a run, ``served_models`` owns the open ones (open, reload, remove), and
``model_routing`` owns who answers: the stable model, a canary's snapshot, experts of ``lanes``.

**Answers.** ``session_inference`` asks one model. ``fallback`` asks the chosen model and decides which is asked next when
it fails or is late: the only such place. ``predictions`` routes a request, asks, and accounts for the result. ``outcomes``
labels predictions and reports observations; ``background`` rebuilds a canary's states and mirrors requests to it.
``listeners`` are the functions that hear of all this, ``worker_thread`` counts the requests that wait for a thread and not
for the loop.

**Sessions.** ``session_requests`` runs the requests of one session in order and in time; ``sessions`` has the operations,
``session_snapshots`` saves and restores. ``expiry`` ends and deletes idle sessions, ``compaction`` syncs and compacts the
log. ``service`` builds all of these and closes them; it has no other duty.

**HTTP.** ``wire`` and ``bodies`` decode, ``app`` maps routes to the service, ``openapi`` documents them, ``guard`` checks
every request first. ``protocol`` parses one request of a connection at a time (``request_head``, ``connection_close``),
``listening`` opens the socket, ``server`` starts and stops the process, ``watchdog`` ends it when its loop is stuck.
``metrics``, ``recent``, ``overview`` and ``dashboard`` show what happens.

**Rollouts.** ``canary`` is one server's part in a rollout, ``participation`` turns observations into units of evidence,
``observations`` and ``causes`` are its input, ``notices`` tell commands and webhooks of the end, ``control`` takes
commands.
"""
