-- The beginning of a run: its tick's lease, the job's lock where one run at a time is allowed, and the claim of its items.
--
-- Locks: the tick's row, the job's row in takt.job_locks (concurrency 1), and the claimed rows of takt.items, which are deleted.
-- Rows that others have locked are skipped, so claims never wait for each other.
-- Indexes: ticks_pkey, and items_due for the claim, walked in its own order.
-- Planner settings: enable_seqscan and enable_bitmapscan are off, and plans are generic, because statistics of a table that was
-- empty a minute ago lead to a full scan of what is there now. items_due is the right path at every size.
-- An item lives in takt.items while it waits, and in its run's row (takt.runs) while it is under way: a claim moves it.

-- The places (ctid) of the next due items of a job, which it locks: at most `most`, and no more than have 256 MiB of payload
-- text together, but at least one. Only claims of more than 512 items need it: 512 payloads of the largest size have 256 MiB.
CREATE OR REPLACE FUNCTION takt.claimable(the_job integer, from_priority smallint, from_run_at timestamptz, from_id bigint, most integer) RETURNS tid[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  due record; places tid[] := '{}'; total bigint := 0;
BEGIN
  -- A loop, because a cursor reads and locks only fifty rows more than are taken.
  FOR due IN SELECT d.ctid AS place, octet_length(d.payload::text) AS bytes FROM takt.items d
              WHERE d.job_id = the_job AND d.state = 0 AND d.run_at <= now()
                AND (d.priority, d.run_at, d.id) > (from_priority, from_run_at, from_id)
              ORDER BY d.priority, d.run_at, d.id LIMIT most FOR UPDATE SKIP LOCKED LOOP
    total := total + due.bytes;
    EXIT WHEN total > 268435456 AND places <> '{}';
    places := places || due.place;
  END LOOP;
  RETURN places;
END $$;

-- Stores a tick's inline items with its ledger entry, which commit together: how many. A tick whose items were accepted before
-- stores nothing. A key that another transaction holds is waited for 100 ms and no longer: the caller keeps a run's place meanwhile.
CREATE OR REPLACE FUNCTION takt.accept_items(the_tick text, the_job integer, the_source text, the_due timestamptz, payloads jsonb[],
                                             keys text[], run_ats timestamptz[], priorities integer[]) RETURNS bigint
LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
BEGIN
  INSERT INTO takt.ticks AS t (id, job_id, source, due_at, published_at, accepted_at)
  VALUES (the_tick, the_job, the_source, the_due, now(), now())
  ON CONFLICT (id) DO UPDATE SET accepted_at = now(), published_at = coalesce(t.published_at, now()), items = NULL
   WHERE t.accepted_at IS NULL AND t.finished_at IS NULL;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  RETURN (SELECT count(*) FROM takt.store_items(the_job, payloads, keys, run_ats, priorities));
END $$;

-- Begins a run of a tick, and claims at most `most` due items, by priority and then the oldest first. A tick with the source
-- 'alone' claims one suspect instead.
-- Rows: none if the tick was seen before (it is finished, or another run has its lease) or `the_tick` is NULL. Otherwise first a
-- row without an item, which tells `source` and `locked` (another run of an exclusive job is under way, so nothing was claimed),
-- then a row for each item.
-- from_*: resume the index scan after the last item of the previous run. Without it, every batch of a long drain would walk over
-- all index entries deleted since the last vacuum. The caller passes NULL about once a second, to pick up items that sort
-- earlier: a higher priority, an earlier run_at, a transaction that committed late.
CREATE OR REPLACE FUNCTION takt.begin_run(the_tick text, the_job integer, the_due timestamptz, the_source text, the_run bigint, the_worker text,
                               lease_ms bigint, exclusive boolean, most integer, is_dry boolean,
                               from_priority smallint DEFAULT NULL, from_run_at timestamptz DEFAULT NULL, from_id bigint DEFAULT NULL)
RETURNS TABLE (source text, locked boolean, item_id bigint, attempt integer, key text, payload text, age_ms bigint, overdue_ms bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
  tick_source text; is_locked boolean := false; picked tid[]; wanted smallint := 0;
BEGIN
  IF the_tick IS NULL THEN
    RETURN;
  END IF;
  INSERT INTO takt.ticks AS t (id, job_id, source, due_at, published_at, run_id, worker, lease_until, begun_at)
  VALUES (the_tick, the_job, the_source, the_due, now(), the_run, the_worker, now() + lease_ms * interval '1 ms', now())
  ON CONFLICT (id) DO UPDATE
     SET run_id = excluded.run_id, worker = excluded.worker, lease_until = excluded.lease_until, begun_at = now(),
         published_at = coalesce(t.published_at, now())
   -- A lease that is over still counts: the rescue gives the run's items back, and the tick with them.
   WHERE t.finished_at IS NULL AND t.lease_until IS NULL
  RETURNING t.source INTO tick_source;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF exclusive THEN
    INSERT INTO takt.job_locks AS l (job_id, run_id, until) VALUES (the_job, the_run, now() + lease_ms * interval '1 ms')
    ON CONFLICT (job_id) DO UPDATE SET run_id = excluded.run_id, until = excluded.until WHERE l.until < now();
    is_locked := NOT FOUND;
  END IF;
  IF is_locked OR (SELECT j.paused OR j.removed_at IS NOT NULL FROM takt.jobs j WHERE j.id = the_job) THEN
    most := 0;
  ELSIF tick_source = 'alone' THEN
    wanted := 6;
    most := least(most, 1);
  END IF;
  IF from_id IS NULL OR NOT EXISTS (
       SELECT 1 FROM takt.items d WHERE d.job_id = the_job AND d.state = 0 AND d.run_at <= now()
          AND (d.priority, d.run_at, d.id) > (from_priority, from_run_at, from_id) LIMIT 1) THEN
    from_priority := -32768;
    from_run_at := '-infinity';
    from_id := -1;
  END IF;
  RETURN QUERY SELECT tick_source, is_locked, NULL::bigint, NULL::integer, NULL::text, NULL::text, NULL::bigint, NULL::bigint;
  IF most > 512 AND wanted = 0 THEN
    picked := takt.claimable(the_job, from_priority, from_run_at, from_id, most);
  END IF;
  -- A locked row keeps its ctid, so the DELETE needs no second lookup.
  RETURN QUERY
    WITH taken AS (
      DELETE FROM takt.items i
       WHERE i.ctid = ANY (CASE WHEN picked IS NOT NULL THEN picked ELSE
                             ARRAY(SELECT d.ctid FROM takt.items d
                                    WHERE d.job_id = the_job AND d.state = wanted AND d.run_at <= now()
                                      AND (d.priority, d.run_at, d.id) > (from_priority, from_run_at, from_id)
                                    ORDER BY d.priority, d.run_at, d.id LIMIT most FOR UPDATE SKIP LOCKED) END)
      RETURNING i.id, i.attempt + 1 AS attempt, i.replay, i.priority, i.run_at, i.enqueued_at, i.key, i.payload),
    ordered AS MATERIALIZED (SELECT * FROM taken ORDER BY priority, run_at, id),
    stored AS (
      INSERT INTO takt.runs (id, started_at, job_id, tick_id, trigger, worker, status, dry_run, item_min, item_max, last_priority,
                             last_run_at, last_id, item_ids, items, keys)
      SELECT the_run, now(), the_job, the_tick,
             CASE WHEN tick_source IN ('schedule', 'external') THEN tick_source
                  WHEN tick_source IN ('due', 'more', 'alone') THEN 'due' ELSE 'manual' END,
             the_worker, 'running', is_dry, min(id), max(id), (array_agg(priority))[count(*)], (array_agg(run_at))[count(*)],
             (array_agg(id))[count(*)], coalesce(array_agg(id), '{}'), coalesce(array_agg(ROW(attempt, replay, priority, run_at, enqueued_at, payload)::takt.claimed_item), '{}'),
             CASE WHEN count(key) > 0 THEN array_agg(key) END
        FROM ordered)
    SELECT NULL::text, NULL::boolean, o.id, o.attempt, o.key, o.payload::text, (extract(epoch FROM now() - greatest(o.enqueued_at, 'epoch')) * 1000)::bigint,
           (extract(epoch FROM now() - greatest(o.run_at, 'epoch')) * 1000)::bigint
      FROM ordered o;
END $$;

-- The same rows again, for a worker that lost its connection after begin_run() had committed and before it knew.
CREATE OR REPLACE FUNCTION takt.claimed_by(the_tick text, the_run bigint)
RETURNS TABLE (source text, locked boolean, item_id bigint, attempt integer, key text, payload text, age_ms bigint, overdue_ms bigint)
LANGUAGE sql STABLE AS $$
  WITH mine AS (
    SELECT t.source, r AS run FROM takt.ticks t JOIN takt.runs r ON r.id = t.run_id AND r.started_at = t.begun_at
     WHERE t.id = the_tick AND t.run_id = the_run AND t.finished_at IS NULL),
  lines AS (
    SELECT 0::bigint AS n, m.source, EXISTS (SELECT 1 FROM takt.jobs j WHERE j.id = (m.run).job_id AND j.concurrency = 1)
             AND NOT EXISTS (SELECT 1 FROM takt.job_locks l WHERE l.run_id = the_run) AS locked,
           NULL::bigint AS id, NULL::integer AS attempt, NULL::text AS key, NULL::text AS payload, NULL::bigint AS age, NULL::bigint AS overdue
      FROM mine m
    UNION ALL
    SELECT i.n, NULL, NULL, i.id, i.attempt, i.key, i.payload::text, (extract(epoch FROM now() - greatest(i.enqueued_at, 'epoch')) * 1000)::bigint,
           (extract(epoch FROM now() - greatest(i.run_at, 'epoch')) * 1000)::bigint
      FROM mine m CROSS JOIN LATERAL takt.items_of(m.run) i)
  SELECT source, locked, id, attempt, key, payload, age, overdue FROM lines ORDER BY n $$;
