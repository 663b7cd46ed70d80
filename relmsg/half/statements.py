"""The coordinator's SQL, each statement with one sentence on why it is right.

Each is a transaction of its own. Whether a half message has ended is decided by nothing but the row's state, by
compare-and-set: two that want to change one row come one after another, and the second looks at what the first left.
``{half}`` and ``{outbox}`` are the tables.
"""

from __future__ import annotations

from relmsg.half.state import OPEN

# What goes from one table into the other as it is, and the casts by which the driver takes it.
MESSAGE = {
    "type": "text",
    "source": "text",
    "exchange": "text",
    "routing_key": "text",
    "ordering_key": "text",
    "headers": "text::jsonb",  # as text: a codec that the engine has for jsonb would encode it once more
    "content_type": "text",
    "content_encoding": "text",
    "correlation_id": "text",
    "reply_to": "text",
    "body": "bytea",
    "occurred_at": "timestamptz",
    "expires_in": "interval",
}
COLUMNS = ", ".join(MESSAGE)
GIVEN = ", ".join(f"${place}::{kind}" for place, kind in enumerate(MESSAGE.values(), 4))
EXCLUDED = ", ".join(f"{name} = excluded.{name}" for name in MESSAGE)
KEPT = ", ".join(name for name in MESSAGE if name != "expires_in")

# sent: the outbox row is made of the very row that has become COMMITTED with its message in it, by the statement that
# made it so.
SENT = f"""
INSERT INTO {{outbox}} (message_id, {KEPT}, expires_at)
SELECT half_id, {KEPT}, clock_timestamp() + expires_in FROM half
 WHERE state = 'COMMITTED'
"""  # noqa: S608 - all names are ours

# prepare: a second one finds ``prepared_at`` set and changes nothing. One that meets a decision which has overtaken it
# takes effect as decided, if its own group has decided so, and otherwise as if nobody had. (xmax tells whether the row
# stood there.)
OWN = (
    "h.producer_group = excluded.producer_group AND (excluded.user_id IS NULL OR h.user_id = excluded.user_id) IS TRUE"
)
PREPARE = f"""
WITH half AS (
    INSERT INTO {{half}} AS h (half_id, producer_group, user_id, {COLUMNS},
                               state, prepared_at, next_check_at, check_every, max_checks)
    VALUES ($1::uuid, $2::text, $3::text, {GIVEN},
            'PREPARED', clock_timestamp(), clock_timestamp() + $17::interval, $18::interval, $19::int)
    ON CONFLICT (half_id) DO UPDATE SET
           producer_group = excluded.producer_group, user_id = excluded.user_id, {EXCLUDED},
           prepared_at = excluded.prepared_at, check_every = excluded.check_every, max_checks = excluded.max_checks,
           state = CASE WHEN {OWN} THEN h.state ELSE excluded.state END,
           next_check_at = CASE WHEN {OWN} THEN NULL ELSE excluded.next_check_at END,
           decided_by = CASE WHEN {OWN} THEN h.decided_by END,
           decided_at = CASE WHEN {OWN} THEN h.decided_at END
     WHERE h.prepared_at IS NULL
    RETURNING *, xmax::text <> '0' AS overtaken
), sent AS ({SENT})
SELECT state, overtaken FROM half
"""  # noqa: S608

# theirs: only the group that prepared it may say anything about it, and only under its login where that is known.
THEIRS = "producer_group = $2::text AND (user_id IS NULL OR user_id = $3::text)"
STILL_OPEN = f"state IN ({', '.join(repr(state.value) for state in OPEN)})"
# counted: each check once, however often and in whatever order the two messages about it come.
COUNTED = """
checks = checks + CASE WHEN least({check}, check_sent) > check_received THEN 1 ELSE 0 END,
check_received = greatest(check_received, least({check}, check_sent))"""

# decide: only an open one is changed, so whoever comes first decides.
DECIDE = f"""
WITH half AS (
    UPDATE {{half}}
       SET state = $4::text, decided_by = $5::text, decided_at = clock_timestamp(), next_check_at = NULL,
           last_answer = coalesce($7::text, last_answer),
           last_answer_at = CASE WHEN $7::text IS NULL THEN last_answer_at ELSE clock_timestamp() END,
           {COUNTED.format(check="$6::int")}
     WHERE half_id = $1::uuid AND {THEIRS} AND {STILL_OPEN}
    RETURNING *
), sent AS ({SENT})
SELECT state FROM half
"""  # noqa: S608

# keep: a decision that has overtaken its prepare waits for it; any row of this id that appeared meanwhile is respected.
KEEP = """
INSERT INTO {half} (half_id, producer_group, user_id, state, decided_by, decided_at)
VALUES ($1::uuid, $2::text, $3::text, $4::text, $5::text, clock_timestamp())
ON CONFLICT (half_id) DO NOTHING RETURNING state
"""

# look: a statement of its own sees what was committed while the one before it waited for the row.
LOOK = "SELECT state, producer_group, user_id FROM {half} WHERE half_id = $1::uuid"

# received: the number of a check counts once.
RECEIVED = f"""
UPDATE {{half}} SET {COUNTED.format(check="$4::int")}
 WHERE half_id = $1::uuid AND {THEIRS} AND state = 'PREPARED' AND least($4::int, check_sent) > check_received
RETURNING state
"""  # noqa: S608

# unknown: nothing is decided; after the last check it need not wait any longer to be parked.
UNKNOWN = f"""
UPDATE {{half}}
   SET last_answer = $5::text, last_answer_at = clock_timestamp(), {COUNTED.format(check="$4::int")},
       next_check_at = CASE WHEN $4::int >= check_sent AND max_checks <=
                                 checks + CASE WHEN least($4::int, check_sent) > check_received THEN 1 ELSE 0 END
                            THEN clock_timestamp() ELSE next_check_at END
 WHERE half_id = $1::uuid AND {THEIRS} AND state = 'PREPARED'
RETURNING state
"""  # noqa: S608

# but: rows that the server has refused to write are left alone for a while (docs/decisions/0161).
# these: the same work, on the rows that are named.
BUT = "half_id <> ALL ({place}::uuid[])"
THESE = "half_id = ANY ($1::uuid[])"

# due: who should be asked, the longest overdue first; nothing is locked, ``claim`` looks again. The statement's own
# time bounds the look in the index; the clock's, which changes meanwhile, would have it read all that are open.
IS_DUE = "state = 'PREPARED' AND next_check_at <= statement_timestamp()"
DUE = f"""
SELECT half_id, producer_group, check_sent > check_received AS is_out FROM {{half}}
 WHERE {IS_DUE} AND checks < max_checks AND {BUT.format(place="$2")} ORDER BY next_check_at LIMIT $1::int
"""  # noqa: S608

# The columns may hold what no half message of a producer's has, written by plain SQL. One such row must not make a
# statement fail that is about many, nor hold what the driver cannot read: then nobody would be checked.
EVERY = "least(greatest(check_every, interval '1 millisecond'), interval '366 days')"
READ = {
    "headers": "h.headers::text AS headers",
    "occurred_at": "CASE WHEN h.occurred_at IS NOT NULL THEN least(greatest(h.occurred_at, "
    "timestamptz '0001-01-02 00:00:00+00'), timestamptz '9999-12-30 00:00:00+00') END AS occurred_at",
    "expires_in": "(extract(epoch FROM h.expires_in) * 1000)::float8 AS expires_in_ms",
}

# claim: the number of the check and the time of the next are committed before it is sent, and whoever else looked at
# the same rows passes them by.
CLAIM = f"""
WITH due AS (
    SELECT half_id, d.spread
      FROM {{half}} AS h JOIN unnest($1::uuid[], $2::float8[]) AS d (half_id, spread) USING (half_id)
     WHERE {IS_DUE} AND checks < max_checks ORDER BY half_id FOR UPDATE OF h SKIP LOCKED)
UPDATE {{half}} AS h SET check_sent = least(check_sent, 2147483646) + 1,
       next_check_at = clock_timestamp() + {EVERY} * due.spread
  FROM due WHERE h.half_id = due.half_id
RETURNING h.half_id, producer_group, {", ".join(READ.get(name, f"h.{name}") for name in MESSAGE)}, check_sent
"""  # noqa: S608

# postpone: the check is not sent, so nothing is counted.
POSTPONE = f"""
WITH due AS (
    SELECT half_id, d.spread
      FROM {{half}} AS h JOIN unnest($1::uuid[], $2::float8[]) AS d (half_id, spread) USING (half_id)
     WHERE {IS_DUE} ORDER BY half_id FOR UPDATE OF h SKIP LOCKED)
UPDATE {{half}} AS h SET next_check_at = clock_timestamp() + least({EVERY}, $3::interval) * due.spread
  FROM due WHERE h.half_id = due.half_id
"""  # noqa: S608

# postpone groups: all that is due of a group that is not to be asked now, in pieces, spread evenly over a fifth of the
# time: they must not come due in one heap again.
OF_GROUPS = f"""
SELECT half_id FROM {{half}} WHERE {IS_DUE} AND producer_group = ANY ($1::text[]) AND {BUT.format(place="$3")}
 ORDER BY next_check_at LIMIT $2::int"""  # noqa: S608
POSTPONE_GROUPS = f"""
WITH due AS ({OF_GROUPS} FOR UPDATE SKIP LOCKED),
spread AS (SELECT half_id, 0.9 + 0.2 * row_number() OVER () / count(*) OVER () AS spread FROM due)
UPDATE {{half}} AS h SET next_check_at = clock_timestamp() + least({EVERY}, $4::interval) * spread.spread
  FROM spread WHERE h.half_id = spread.half_id
"""  # noqa: S608

# park: the last check is over, and its time as well; the one place where this is decided.
IS_OVER = f"{IS_DUE} AND checks >= max_checks"
TO_PARK = f"""
SELECT half_id FROM {{half}} WHERE {IS_OVER} AND {BUT.format(place="$2")} ORDER BY next_check_at LIMIT $1::int
"""  # noqa: S608
_PARK = """
WITH due AS ({which} FOR UPDATE SKIP LOCKED)
UPDATE {{half}} AS h SET state = 'PARKED', next_check_at = NULL FROM due WHERE h.half_id = due.half_id
RETURNING h.half_id, producer_group, type, checks, last_answer
"""
PARK = _PARK.format(which=TO_PARK)
PARK_THESE = _PARK.format(which=f"SELECT half_id FROM {{half}} WHERE {IS_OVER} AND {THESE}")  # noqa: S608

# prune: what has ended, and nothing else; one that was resumed has a time of decision too.
HAS_ENDED = "state IN ('COMMITTED', 'ROLLED_BACK') AND decided_at < statement_timestamp() - $2::interval"
TO_PRUNE = f"""
SELECT half_id FROM {{half}} WHERE {HAS_ENDED} AND {BUT.format(place="$3")} LIMIT $1::int
"""  # noqa: S608
_PRUNE = """
WITH old AS ({which} FOR UPDATE SKIP LOCKED)
DELETE FROM {{half}} AS h USING old WHERE h.half_id = old.half_id RETURNING h.half_id
"""
PRUNE = _PRUNE.format(which=TO_PRUNE)
PRUNE_THESE = _PRUNE.format(which=f"SELECT half_id FROM {{half}} WHERE {HAS_ENDED} AND {THESE}")  # noqa: S608

# figures: by the two partial indexes of what is open.
FIGURES = """
SELECT (SELECT count(*) FROM {half} WHERE state = 'PARKED') AS parked, count(*) AS open,
       coalesce(extract(epoch FROM clock_timestamp() - min(prepared_at) FILTER (WHERE isfinite(prepared_at))), 0)
       ::float8 AS oldest
  FROM {half} WHERE state = 'PREPARED'
"""
