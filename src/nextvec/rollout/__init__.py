"""Rollouts: evidence and bets, the plan and its state machine, the ledger, the simulator. No HTTP, no engine."""
