"""A schema ``public`` in which somebody has put functions and operators that fit better than PostgreSQL's own."""

from __future__ import annotations

import asyncpg

LOGIN = "mallory"
# In every database an unknown function may be made for every type a caller may have at hand.
TYPES = (
    "text", "varchar", "name", "uuid", "bytea", "jsonb", "boolean", "oid", "xid", "smallint", "integer", "bigint",
    "numeric", "double precision", "timestamptz", "interval",
)  # fmt: skip
SYMBOLS = ("=", "<>", "<", ">", "<=", ">=", "+", "-", "*", "/", "||", "&")

# Each returns NULL. Calls are counted by PostgreSQL itself (track_functions), so that no rollback hides them.
TRAP = """
CREATE FUNCTION pg_temp.trap(name text, arguments text, result text) RETURNS void LANGUAGE plpgsql AS $make$
BEGIN
    EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS %s LANGUAGE plpgsql AS
                    $$ BEGIN RETURN %s; END $$', name, arguments, result,
                   CASE WHEN result LIKE 'SETOF%' THEN '' ELSE 'NULL' END);
EXCEPTION WHEN duplicate_function OR invalid_function_definition OR feature_not_supported
            OR undefined_object OR datatype_mismatch OR syntax_error THEN
    NULL;
END $make$
"""
# What takes anything, with one type after another: an exact match.
POLYMORPHIC = """
DO $do$ DECLARE t text; BEGIN
    FOREACH t IN ARRAY $types LOOP
        PERFORM pg_temp.trap('unnest', t || '[]', 'SETOF ' || t);
        PERFORM pg_temp.trap('cardinality', t || '[]', 'integer');
        PERFORM pg_temp.trap('array_to_string', t || '[], text', 'text');
        PERFORM pg_temp.trap('array_length', t || '[], integer', 'integer');
        PERFORM pg_temp.trap('format', 'text, ' || t, 'text');
        PERFORM pg_temp.trap('format', 'text, ' || t || ',' || t || ',' || t, 'text');
        PERFORM pg_temp.trap('collect_' || replace(t, ' ', '_'), t || '[], ' || t, t || '[]');
        PERFORM pg_temp.trap('tally_' || replace(t, ' ', '_'), 'bigint, ' || t, 'bigint');
        EXECUTE format('CREATE AGGREGATE public.array_agg(%s) (SFUNC = public.%I, STYPE = %s[])',
                       t, 'collect_' || replace(t, ' ', '_'), t);
        EXECUTE format('CREATE AGGREGATE public.count(%s) (SFUNC = public.%I, STYPE = bigint)',
                       t, 'tally_' || replace(t, ' ', '_'));
    END LOOP;
END $do$
"""
# What takes text, with varchar, and what takes a wider number, with a narrower one.
NARROWER = """
DO $do$ DECLARE f record; BEGIN
    FOR f IN SELECT proname, result, replace(given, 'text', 'varchar') AS given
               FROM (SELECT proname, pg_get_function_result(oid) AS result, oidvectortypes(proargtypes) AS given
                       FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f'
                        AND pronargs BETWEEN 1 AND 4 AND provariadic = 0) AS p
              WHERE given ~ '\\ytext\\y' AND given !~ 'any|internal|cstring' AND result !~ 'any|internal|cstring|TABLE'
    LOOP
        PERFORM pg_temp.trap(f.proname, f.given, f.result);
    END LOOP;
END $do$
"""
OPERATORS = """
DO $do$ DECLARE o record; BEGIN
    FOR o IN SELECT l, r, s FROM unnest($types) l, unnest($types) r, unnest($symbols) s
              WHERE NOT EXISTS (SELECT FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprname = s
                                   AND oprleft = l::regtype AND oprright = r::regtype)
    LOOP
        PERFORM pg_temp.trap('operator ' || o.s, o.l || ',' || o.r,
                             CASE WHEN o.s IN ('=', '<>', '<', '>', '<=', '>=') THEN 'boolean'
                                  WHEN 'interval' IN (o.l, o.r) THEN 'interval' ELSE o.l END);
        EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = public.%I, LEFTARG = %s, RIGHTARG = %s)',
                       o.s, 'operator ' || o.s, o.l, o.r);
    END LOOP;
END $do$
"""


async def set_traps(url: str) -> None:
    """Let ``mallory``, who may do nothing but create in ``public``, put traps there; ``url`` is a superuser's.

    Every connection made to the database from now on counts what it calls.
    """
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        database = await connection.fetchval("SELECT current_database()")
        await connection.execute(
            f"DO $$ BEGIN CREATE ROLE {LOGIN}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        await connection.execute(f"GRANT CREATE ON SCHEMA public TO {LOGIN}")
        await connection.execute(f'GRANT TEMPORARY ON DATABASE "{database}" TO {LOGIN}')
        await connection.execute(f"ALTER DATABASE \"{database}\" SET track_functions = 'all'")
        await connection.execute(f"SET ROLE {LOGIN}; SET search_path = pg_catalog")
        for script in (TRAP, POLYMORPHIC, NARROWER, OPERATORS):
            types, symbols = (f"ARRAY{list(each)}::text[]" for each in (TYPES, SYMBOLS))
            await connection.execute(script.replace("$types", types).replace("$symbols", symbols))
    finally:
        await connection.close()


async def sprung(url: str) -> dict[str, int]:
    """The traps that were called, and how often. Sessions tell at their end, or within a second after their work."""
    connection = await asyncpg.connect(
        url.replace("+asyncpg", ""), server_settings={"search_path": "pg_catalog", "track_functions": "none"}
    )
    try:
        found = await connection.fetch(
            "SELECT pg_catalog.format('%s(%s)', s.funcname, pg_catalog.pg_get_function_identity_arguments(s.funcid)) "
            "AS trap, s.calls FROM pg_catalog.pg_stat_user_functions AS s WHERE s.schemaname = 'public'"
        )
        return {record["trap"]: record["calls"] for record in found}
    finally:
        await connection.close()
