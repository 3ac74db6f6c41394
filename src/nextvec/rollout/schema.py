"""The tables of a ledger, the same in SQLite and PostgreSQL."""

GENESIS = "0" * 64  # hash before the first row

TABLES = (
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL)",
    "CREATE TABLE ledger (seq INTEGER PRIMARY KEY, rollout TEXT NOT NULL, epoch INTEGER NOT NULL, "
    "before TEXT NOT NULL, after TEXT NOT NULL, cause TEXT NOT NULL, evidence TEXT NOT NULL, actor TEXT NOT NULL, "
    "time TEXT NOT NULL, prev_hash TEXT NOT NULL, hash TEXT NOT NULL, UNIQUE (rollout, epoch))",
    "CREATE TABLE rollouts (rollout TEXT PRIMARY KEY, route TEXT NOT NULL, active INTEGER NOT NULL, "
    "epoch INTEGER NOT NULL, state TEXT NOT NULL, holder TEXT NOT NULL, token INTEGER NOT NULL, beat INTEGER NOT NULL, "
    "watched DOUBLE PRECISION NOT NULL, last_unit DOUBLE PRECISION NOT NULL, evidence TEXT NOT NULL)",
    "CREATE UNIQUE INDEX one_active ON rollouts (route) WHERE active = 1",
    "CREATE TABLE routers (rollout TEXT NOT NULL, router TEXT NOT NULL, epoch INTEGER NOT NULL, "
    "batch INTEGER NOT NULL, PRIMARY KEY (rollout, router))",
    "CREATE TABLE reports (rollout TEXT NOT NULL, router TEXT NOT NULL, batch INTEGER NOT NULL, "
    "body TEXT NOT NULL, PRIMARY KEY (rollout, router, batch))",
    "INSERT INTO head VALUES (1, 0, ?)",
)
