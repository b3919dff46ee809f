-- What applications call, inside their own transactions: takt.enqueue() and takt.enqueue_many() (docs/enqueueing.md). The other
-- functions here are parts of these two.
--
-- Locks: none without a key. With a key, the row in takt.item_keys, where the key is new or is taken over from an item that has
-- ended; a caller that finds the key in use locks and writes nothing. All of it is held until the caller's transaction ends.
-- Indexes: jobs_name_key for the job, item_keys_pkey for a key. A new item writes one index entry, of items_due.
-- These are SECURITY DEFINER, since applications have no rights on the tables. enqueue_many() sets search_path; enqueue() names
-- the schema of every function and operator instead, because setting it would cost a seventh of the whole call.

-- The item that owns a key which had a row a moment ago. That is the row's item while it lives or is within its dedupe window,
-- and `new_item`, which takes the key over, where it is not. A key in use is neither locked nor written, so a caller whose
-- transaction stays open is in nobody's way. Whether the window is over is asked of clock_timestamp(), because now() is as old
-- as the caller's transaction.
CREATE OR REPLACE FUNCTION takt.own_key(the_job integer, the_key text, new_item bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  owner bigint;
BEGIN
  FOR round IN 1..1000 LOOP
    SELECT k.item_id INTO owner FROM takt.item_keys k
     WHERE k.job_id = the_job AND k.key = the_key AND coalesce(k.expires_at > clock_timestamp(), true);
    IF FOUND THEN
      RETURN owner;
    END IF;
    BEGIN
      UPDATE takt.item_keys SET item_id = new_item, expires_at = NULL
       WHERE ctid = (SELECT k.ctid FROM takt.item_keys k
                      WHERE k.job_id = the_job AND k.key = the_key AND k.expires_at <= clock_timestamp() FOR NO KEY UPDATE SKIP LOCKED);
      IF FOUND THEN
        RETURN new_item;
      END IF;
      -- Somebody may have taken the key over and committed since this statement began. PostgreSQL has then locked their row before
      -- it saw that the row no longer matches, and only a rollback unlocks it. Else the end of their item would wait for this caller.
      RAISE EXCEPTION USING ERRCODE = 'TK001';
    EXCEPTION WHEN SQLSTATE 'TK001' THEN
      NULL;
    END;
    -- Either the row was removed, or somebody else is taking the key over. This waits for them, and locks nothing of theirs.
    INSERT INTO takt.item_keys (job_id, key, item_id) VALUES (the_job, the_key, new_item) ON CONFLICT (job_id, key) DO NOTHING;
    IF FOUND THEN
      RETURN new_item;
    ELSIF round > 2 THEN
      PERFORM pg_sleep(0.002);  -- the retention has it locked, and removes many at once
    END IF;
  END LOOP;
  RAISE EXCEPTION 'takt: the key "%" was locked by others for seconds', the_key USING ERRCODE = 'serialization_failure';
END $$;

-- Stores items of one job, and returns a row for each element, in order. Of several with one key the first wins, also inside
-- one call. An empty key is no key. Keys are inserted in sorted order, so that two callers never wait for each other in a circle.
-- The INSERT waits for a transaction that is changing a key's row now, and raises 40001 where the caller's REPEATABLE READ
-- snapshot is older than that row.
CREATE OR REPLACE FUNCTION takt.store_items(the_job integer, payloads jsonb[], keys text[], run_ats timestamptz[], priorities integer[])
RETURNS TABLE (ordinal integer, item_id bigint, created boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  ids bigint[]; owners bigint[]; lost record; lost_keys text[]; lost_owners bigint[];
BEGIN
  IF NOT EXISTS (SELECT 1 FROM unnest(keys) AS k WHERE k <> '') THEN
    RETURN QUERY
      WITH given AS (
        SELECT o.n::integer AS n, nextval('takt.items_id_seq') AS id, o.payload, o.run_at, o.priority
          FROM unnest(payloads, run_ats, priorities) WITH ORDINALITY AS o(payload, run_at, priority, n)),
      stored AS (
        INSERT INTO takt.items (id, job_id, priority, run_at, payload)
        SELECT id, the_job, coalesce(priority, 0), takt.item_time(run_at), coalesce(payload, '{}') FROM given)
      SELECT n, id, true FROM given ORDER BY n;
    RETURN;
  END IF;
  WITH given AS (
    SELECT o.n, nextval('takt.items_id_seq') AS id, o.payload, nullif(o.key, '') AS key, o.run_at, o.priority
      FROM unnest(payloads, keys, run_ats, priorities) WITH ORDINALITY AS o(payload, key, run_at, priority, n)),
  firsts AS (SELECT DISTINCT ON (key) key, id FROM given WHERE key IS NOT NULL ORDER BY key, n),
  owned AS (
    INSERT INTO takt.item_keys AS k (job_id, key, item_id) SELECT the_job, key, id FROM firsts ORDER BY key
    ON CONFLICT (job_id, key) DO NOTHING RETURNING k.key, k.item_id),
  stored AS (
    INSERT INTO takt.items (id, job_id, priority, run_at, key, payload)
    SELECT g.id, the_job, coalesce(g.priority, 0), takt.item_time(g.run_at), g.key, coalesce(g.payload, '{}')
      FROM given g LEFT JOIN owned h ON h.key = g.key
     WHERE g.key IS NULL OR h.item_id = g.id)
  SELECT array_agg(g.id ORDER BY g.n), array_agg(CASE WHEN g.key IS NULL THEN g.id ELSE h.item_id END ORDER BY g.n)
    INTO ids, owners
    FROM given g LEFT JOIN owned h ON h.key = g.key;
  IF array_position(owners, NULL) IS NOT NULL THEN
    FOR lost IN SELECT DISTINCT ON (o.key) o.key, o.id FROM unnest(keys, ids, owners) WITH ORDINALITY AS o(key, id, owner, n)
                 WHERE o.owner IS NULL AND o.id IS NOT NULL ORDER BY o.key, o.n LOOP
      lost_keys := lost_keys || lost.key;
      lost_owners := lost_owners || takt.own_key(the_job, lost.key, lost.id);
    END LOOP;
    WITH lost AS (SELECT * FROM unnest(lost_keys, lost_owners) AS l(key, owner)),
    stored AS (
      INSERT INTO takt.items (id, job_id, priority, run_at, key, payload)
      SELECT o.id, the_job, coalesce(o.priority, 0), takt.item_time(o.run_at), o.key, coalesce(o.payload, '{}')
        FROM unnest(payloads, keys, run_ats, priorities, ids) AS o(payload, key, run_at, priority, id)
        JOIN lost l ON l.owner = o.id)
    SELECT array_agg(coalesce(o.owner, l.owner) ORDER BY o.n) INTO owners
      FROM unnest(keys, owners) WITH ORDINALITY AS o(key, owner, n) LEFT JOIN lost l ON l.key = o.key;
  END IF;
  RETURN QUERY SELECT o.n::integer, o.owner, o.owner = o.id FROM unnest(ids, owners) WITH ORDINALITY AS o(id, owner, n) ORDER BY o.n;
END $$;

-- Raises what is wrong with an item; returns if nothing is. `place`: which element of a set it is.
CREATE OR REPLACE FUNCTION takt.refuse_item(payload jsonb, key text, run_at timestamptz, priority integer, place bigint DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = takt, pg_temp AS $$
DECLARE
  bytes bigint := takt.payload_bytes(payload); of_set text := coalesce(' of element ' || place, '');
BEGIN
  IF bytes > 524288 THEN
    RAISE EXCEPTION 'takt: payload% has % bytes, more than 524288', of_set, CASE WHEN bytes = 1073741824 THEN '1 GiB of' ELSE bytes::text END
      USING ERRCODE = 'program_limit_exceeded', HINT = 'Store large data elsewhere and enqueue a reference to it.';
  ELSIF length(key) > 512 THEN
    RAISE EXCEPTION 'takt: key% has % characters, more than 512', of_set, length(key) USING ERRCODE = 'invalid_parameter_value';
  ELSIF run_at >= '10000-01-01 00:00:00+00' THEN
    RAISE EXCEPTION 'takt: run_at% is %, after the year 9999', of_set, run_at
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave out run_at, or give NULL, for an item that is due now.';
  ELSIF priority NOT BETWEEN -100 AND 100 THEN
    RAISE EXCEPTION 'takt: priority% is %, outside -100 to 100', of_set, priority USING ERRCODE = 'invalid_parameter_value';
  END IF;
END $$;

-- Stores an item with a key, or returns the id of the item that owns the key. A free key costs one statement. An empty key is no
-- key.
CREATE OR REPLACE FUNCTION takt.enqueue_keyed(job text, payload jsonb, key text, run_at timestamptz, priority integer,
                                   OUT stored bigint, OUT the_job integer)
LANGUAGE plpgsql SET search_path = takt, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  new_item bigint;
BEGIN
  IF length(key) > 512 THEN
    PERFORM takt.refuse_item(payload, key, run_at, priority);
  END IF;
  IF key <> '' THEN
    WITH owned AS (
      INSERT INTO takt.item_keys AS k (job_id, key, item_id)
      SELECT j.id, key, nextval('takt.items_id_seq') FROM takt.jobs j WHERE j.name = job AND j.removed_at IS NULL
      ON CONFLICT ON CONSTRAINT item_keys_pkey DO NOTHING RETURNING k.job_id, k.item_id)
    INSERT INTO takt.items AS i (id, job_id, priority, run_at, key, payload)
    SELECT h.item_id, h.job_id, coalesce(priority, 0), takt.item_time(run_at), key, coalesce(payload, '{}') FROM owned h
    RETURNING i.id, i.job_id INTO stored, the_job;
    IF stored IS NOT NULL THEN
      RETURN;
    END IF;
  END IF;
  the_job := takt.job_id_of(job);
  new_item := nextval('takt.items_id_seq');
  stored := CASE key WHEN '' THEN new_item ELSE takt.own_key(the_job, key, new_item) END;
  IF stored = new_item THEN
    INSERT INTO takt.items (id, job_id, priority, run_at, key, payload)
    VALUES (stored, the_job, coalesce(priority, 0), takt.item_time(run_at), nullif(key, ''), coalesce(payload, '{}'));
  END IF;
END $$;

-- The advisory lock that a transaction takes before it notifies, so that of those open at the same time for one job only one
-- does. Transactions that began in different 50 ms do not share a lock: one that stays open keeps others from notifying for no
-- longer than that. There are 64 of them for all jobs, because a transaction may enqueue for thousands of jobs, and the server's
-- table of locks is small.
CREATE OR REPLACE FUNCTION takt.notifier_lock(the_job integer) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (pg_catalog.date_part('epoch', pg_catalog.now()) OPERATOR(pg_catalog.*) 20)::pg_catalog.int8 OPERATOR(pg_catalog.*) 64
         OPERATOR(pg_catalog.+) (the_job OPERATOR(pg_catalog.&) 63) $$;

-- One item. Returns its id, or the id of the item that owns the key.
-- The dispatcher is woken by a NOTIFY that names the job and is delivered at commit. PostgreSQL commits one notifying transaction
-- at a time, so where several are open only the first notifies (notifier_lock). The dispatcher looks again a few milliseconds
-- after each wake-up, and every dispatcher.scan_interval in any case.
CREATE OR REPLACE FUNCTION takt.enqueue(job text, payload jsonb DEFAULT '{}', key text DEFAULT NULL,
                             run_at timestamptz DEFAULT now(), priority integer DEFAULT 0)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
#variable_conflict use_variable
DECLARE
  stored bigint; the_job integer;
BEGIN
  IF takt.payload_is_large(payload)
     OR priority OPERATOR(pg_catalog.>) 100 OR priority OPERATOR(pg_catalog.<) -100
     OR run_at OPERATOR(pg_catalog.>=) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz THEN
    PERFORM takt.refuse_item(payload, key, run_at, priority);
  END IF;
  IF key IS NULL THEN
    INSERT INTO takt.items (job_id, priority, run_at, payload)
    SELECT j.id, coalesce(priority, 0),
           CASE WHEN run_at OPERATOR(pg_catalog.>=) '1970-01-01 00:00:00+00'::pg_catalog.timestamptz THEN run_at ELSE pg_catalog.now() END,
           coalesce(payload, '{}'::pg_catalog.jsonb)
      FROM takt.jobs j WHERE j.name OPERATOR(pg_catalog.=) job AND j.removed_at IS NULL
    RETURNING id, job_id INTO stored, the_job;
    IF stored IS NULL THEN
      PERFORM takt.job_id_of(job);
    END IF;
  ELSE
    SELECT k.stored, k.the_job INTO stored, the_job FROM takt.enqueue_keyed(job, payload, key, run_at, priority) k;
  END IF;
  -- NOTIFY in the condition, because PL/pgSQL sets each statement up anew in each transaction.
  IF (run_at OPERATOR(pg_catalog.>) pg_catalog.now()) IS NOT TRUE
     AND pg_catalog.pg_try_advisory_xact_lock(takt.notifier_lock(the_job)) AND pg_catalog.pg_notify('takt_due', job) IS NULL THEN
    NULL;
  END IF;
  RETURN stored;
END $$;

-- Raises which array of enqueue_many() is wrong as a whole.
CREATE OR REPLACE FUNCTION takt.refuse_arrays(payloads jsonb[], keys text[], run_ats timestamptz[], priorities integer[]) RETURNS void
LANGUAGE plpgsql SET search_path = takt, pg_temp AS $$
DECLARE
  size integer := cardinality(payloads); other record;
BEGIN
  IF payloads IS NULL OR size = 0 THEN
    RAISE EXCEPTION 'takt: payloads is %', CASE WHEN size = 0 THEN 'empty' ELSE 'NULL' END
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Give one payload for each item, ''{}'' where it has none.';
  ELSIF size > 10000 THEN
    RAISE EXCEPTION 'takt: payloads has % elements, more than 10000', size
      USING ERRCODE = 'program_limit_exceeded', HINT = 'Call takt.enqueue_many for each 10000; they may share a transaction.';
  END IF;
  FOR other IN SELECT name, length FROM (VALUES ('keys', cardinality(keys)), ('run_ats', cardinality(run_ats)),
                                                ('priorities', cardinality(priorities))) v(name, length) WHERE length <> size LOOP
    RAISE EXCEPTION 'takt: payloads has % elements and % has %', size, other.name, other.length
      USING ERRCODE = 'array_subscript_error', HINT = 'Leave an array out, or give NULL for it as a whole, where no item has such a value.';
  END LOOP;
END $$;

-- Raises what is wrong with an element of enqueue_many(); returns its payload if nothing is.
CREATE OR REPLACE FUNCTION takt.refuse_element(payload jsonb, key text, run_at timestamptz, priority integer, place bigint,
                                    has_times boolean, has_priorities boolean) RETURNS jsonb
LANGUAGE plpgsql SET search_path = takt, pg_temp AS $$
DECLARE
  missing text := CASE WHEN payload IS NULL THEN 'payloads' WHEN run_at IS NULL AND has_times THEN 'run_ats'
                       WHEN priority IS NULL AND has_priorities THEN 'priorities' END;
BEGIN
  IF missing IS NOT NULL THEN
    RAISE EXCEPTION 'takt: element % of % is NULL', place, missing
      USING ERRCODE = 'null_value_not_allowed', HINT = 'Give ''{}'' for no payload, now() for now and 0 for no priority.';
  END IF;
  PERFORM takt.refuse_item(payload, key, run_at, priority, place);
  RETURN payload;
END $$;

-- A set of items: arrays in, one row for each element out. keys, run_ats and priorities may be NULL as a whole; a key that is
-- NULL or empty is no key. Where only payloads are given, they are checked in the statement that stores them, which saves a
-- pass. Elements of an array are never compressed, so a size of at most 128 bytes is enough to know (see payload_is_large).
CREATE OR REPLACE FUNCTION takt.enqueue_many(job text, payloads jsonb[], keys text[] DEFAULT NULL,
                                  run_ats timestamptz[] DEFAULT NULL, priorities integer[] DEFAULT NULL)
RETURNS TABLE (ordinal integer, item_id bigint, created boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = takt, pg_temp AS $$
#variable_conflict use_column
DECLARE
  the_job integer := takt.job_id_of(job); size integer := coalesce(cardinality(payloads), 0);
BEGIN
  IF size = 0 OR size > 10000 OR cardinality(keys) <> size OR cardinality(run_ats) <> size OR cardinality(priorities) <> size THEN
    PERFORM takt.refuse_arrays(payloads, keys, run_ats, priorities);
  END IF;
  IF pg_try_advisory_xact_lock(takt.notifier_lock(the_job)) THEN
    PERFORM pg_notify('takt_due', job);
  END IF;
  IF keys IS NULL AND run_ats IS NULL AND priorities IS NULL THEN
    RETURN QUERY
      WITH given AS (
        SELECT o.n::integer AS n, nextval('takt.items_id_seq') AS id,
               CASE WHEN pg_column_size(o.payload) <= 128 THEN o.payload
                    WHEN o.payload IS NULL OR takt.payload_is_large(o.payload)
                    THEN takt.refuse_element(o.payload, NULL, NULL, NULL, o.n, false, false)
                    ELSE o.payload END AS payload
          FROM unnest(payloads) WITH ORDINALITY AS o(payload, n)),
      stored AS (
        INSERT INTO takt.items (id, job_id, payload) SELECT id, the_job, payload FROM given)
      SELECT n, id, true FROM given ORDER BY n;
    RETURN;
  END IF;
  PERFORM takt.refuse_element(payload, key, run_at, priority, n, run_ats IS NOT NULL, priorities IS NOT NULL)
     FROM unnest(payloads, keys, run_ats, priorities) WITH ORDINALITY AS u(payload, key, run_at, priority, n)
    WHERE payload IS NULL OR (run_at IS NULL AND run_ats IS NOT NULL) OR (priority IS NULL AND priorities IS NOT NULL)
       OR priority NOT BETWEEN -100 AND 100 OR run_at >= '10000-01-01 00:00:00+00' OR length(key) > 512
       OR takt.payload_is_large(payload);
  RETURN QUERY SELECT s.ordinal, s.item_id, s.created FROM takt.store_items(the_job, payloads, keys, run_ats, priorities) s;
END $$;
