-- The partitions of takt.runs, takt.ended_items and takt.failed_attempts. The dispatcher's retention makes and drops them; so
-- does whoever finds one missing. What each function locks stands beside it.

-- A run's row is written at its claim and updated at its end: half of each page is left for the second version. Its items are
-- compressed with lz4 where the server has it, in a tenth of the time that pglz takes.
CREATE OR REPLACE FUNCTION takt.tune_runs_partition(child text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE col text;
BEGIN
  EXECUTE format('ALTER TABLE takt.%I SET (fillfactor = 50)', child);
  IF EXISTS (SELECT 1 FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
    FOREACH col IN ARRAY ARRAY['item_ids', 'items', 'keys', 'durations'] LOOP
      EXECUTE format('ALTER TABLE takt.%I ALTER COLUMN %I SET COMPRESSION lz4', child, col);
    END LOOP;
  END IF;
END $$;

-- The partitions, and where each begins and ends. The bounds are parsed from text that PostgreSQL writes in the session's time
-- zone and date style; so the functions that use this view set both.
CREATE OR REPLACE VIEW takt.history_partitions AS
  SELECT p.relname AS parent, c.relname AS child,
         (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz AS since,
         (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz AS until
    FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_class p ON p.oid = h.inhparent
    JOIN pg_namespace n ON n.oid = p.relnamespace
   WHERE n.nspname = 'takt' AND p.relname IN ('runs', 'ended_items', 'failed_attempts') AND c.relname ~ '_[0-9]{8}$';

-- What takt.ensure_partitions() does once it is alone.
CREATE OR REPLACE FUNCTION takt.make_partitions(days integer, width integer) RETURNS integer
LANGUAGE plpgsql SET timezone = 'UTC' SET datestyle = 'ISO' SET lock_timeout = '200ms' SET client_min_messages = warning AS $$
DECLARE
  parent_table text; child_table text; step interval; first timestamptz; last timestamptz; made integer := 0; other integer := 1;
  today timestamptz := date_trunc('day', now());
BEGIN
  FOREACH parent_table IN ARRAY ARRAY['runs', 'ended_items', 'failed_attempts'] LOOP
    SELECT make_interval(days => coalesce(width, (array_agg(until::date - since::date ORDER BY until DESC))[1], 1))
      INTO step FROM takt.history_partitions WHERE parent = parent_table AND until IS NOT NULL;  -- NULL: it is being dropped
    first := today - interval '1 day';
    WHILE first <= today + make_interval(days => days) LOOP
      SELECT until INTO last FROM takt.history_partitions WHERE parent = parent_table AND first >= since AND first < until;
      IF FOUND THEN
        first := last;
        CONTINUE;
      END IF;
      SELECT least(first + step, min(since)) INTO last FROM takt.history_partitions WHERE parent = parent_table AND since > first;
      child_table := parent_table || '_' || to_char(first, 'YYYYMMDD');
      WHILE to_regclass('takt.' || child_table) IS NOT NULL LOOP  -- somebody detached one, and keeps it
        other := other + 1;
        child_table := parent_table || '_' || other || '_' || to_char(first, 'YYYYMMDD');
      END LOOP;
      EXECUTE format('CREATE TABLE takt.%I (LIKE takt.%I INCLUDING DEFAULTS)', child_table, parent_table);
      IF parent_table = 'runs' THEN
        PERFORM takt.tune_runs_partition(child_table);
      END IF;
      EXECUTE format('ALTER TABLE takt.%I ATTACH PARTITION takt.%I FOR VALUES FROM (%L) TO (%L)',
                     parent_table, child_table, first, last);
      made := made + 1;
      first := last;
    END LOOP;
  END LOOP;
  RETURN made;
END $$;

-- Makes the partitions that are missing between yesterday and `days` ahead, of `width` days each or up to the next one there is:
-- where a server's clock was put right, or somebody dropped some, others may exist for later days alone. `width` NULL means that
-- of the last one. Returns how many were made. It can be repeated.
-- An advisory lock lets one caller at a time in. The others wait for it, each as long as its own lock_timeout says: what they
-- need is being made.
-- A partition is made as a table of its own and then attached, with SHARE UPDATE EXCLUSIVE on its parent: readers and writers
-- neither wait nor are waited for. While somebody alters the parent, it raises 55P03 after 200 ms.
-- Keep partitions few: a statement that writes into a run pays for each of them.
CREATE OR REPLACE FUNCTION takt.ensure_partitions(days integer DEFAULT 3, width integer DEFAULT NULL) RETURNS integer
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(1952541559);
  RETURN takt.make_partitions(days, width);
END $$;

-- Transactions of other sessions that have a lock on a table, or wait for one.
CREATE OR REPLACE FUNCTION takt.transactions_on(child text) RETURNS text[] LANGUAGE sql AS $$
  SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') FROM pg_locks
   WHERE locktype = 'relation' AND relation = format('takt.%I', child)::regclass AND pid <> pg_backend_pid()
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) $$;

-- Drops the oldest partition that ended more than `keep` ago.
-- `child`: the partition; NULL if none is so old. `dropped`: false if it was in use.
-- DROP takes ACCESS EXCLUSIVE on the parent, and everybody who comes while it waits for that lock waits behind it. So it is not
-- tried while a transaction uses the parent for longer than half a second, and given up after 50 ms. DETACH CONCURRENTLY would
-- need no such care. But it runs outside a transaction, where no timeout can be set behind a transaction pooler, and then waits
-- without end.
CREATE OR REPLACE FUNCTION takt.drop_old_partition(keep interval, OUT child text, OUT dropped boolean)
LANGUAGE plpgsql SET timezone = 'UTC' SET datestyle = 'ISO' SET lock_timeout = '50ms' AS $$
DECLARE
  old record; before text[];
BEGIN
  dropped := false;
  SELECT p.parent, p.child INTO old FROM takt.history_partitions p WHERE p.until < now() - keep ORDER BY p.until, p.parent LIMIT 1;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  child := old.child;
  before := takt.transactions_on(old.parent) || takt.transactions_on(old.child);
  IF before <> '{}' THEN
    PERFORM pg_sleep(0.5);
    IF before && (takt.transactions_on(old.parent) || takt.transactions_on(old.child)) THEN
      RETURN;
    END IF;
  END IF;
  EXECUTE format('DROP TABLE takt.%I', old.child);
  dropped := true;
EXCEPTION
  WHEN lock_not_available THEN
    dropped := false;
END $$;

-- Has PostgreSQL count the rows of those of Takt's tables that its statistics call empty, or nearly so, and that are not. Returns
-- how many these were. Locks each as a VACUUM does, and passes over one that is locked so already.
-- By the statistics of an empty table every index is as good as the right one, also one of which the whole has to be read. A
-- session keeps such a plan until the table is counted, while thousands of runs come in: a drain took ten times as long. It
-- comes about where a day's partition is vacuumed before its day; autovacuum counts it up to a minute later.
CREATE OR REPLACE FUNCTION takt.analyze_grown() RETURNS integer LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
DECLARE
  grown regclass; counted integer := 0;
BEGIN
  FOR grown IN SELECT c.oid FROM pg_class c
                WHERE c.relnamespace = 'takt'::regnamespace AND c.relkind = 'r' AND c.relpages < 10 AND pg_relation_size(c.oid) >= 10 * 8192 LOOP
    BEGIN
      EXECUTE format('ANALYZE %s', grown);
      counted := counted + 1;
    EXCEPTION
      WHEN lock_not_available OR undefined_table THEN
        NULL;  -- it is being counted, or dropped
    END;
  END LOOP;
  RETURN counted;
END $$;

-- New partitions are needed at once: runs are written into them. The dispatcher makes further ones.
SELECT takt.ensure_partitions();
