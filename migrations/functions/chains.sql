-- Chains: runs of one job that follow each other at once in one worker while there is a backlog. go_on() ends many runs and
-- begins the next of each in one call, where end_run() and begin_run() would take two calls for each run.
--
-- Locks: the ticks' rows, which are fence and lease; keys; the claimed rows of takt.items. Indexes and planner settings as in
-- claim.sql and settle.sql; hash and merge joins are off as well, because each join here finds a few rows by a primary key.

-- Ends runs that leave nothing behind (every item done or noop), and begins the next run of each chain under the same tick, whose
-- source is 'more'. Beside the items, three rows are written for each run. A lease is renewed once a tenth of it is over.
-- The arrays have one element for each run; `durations` and `noops` hold array literals. The claimed items are dealt out in
-- claim order, `most` to a run. A chain that gets none has ended.
-- Rows: the number of each run that was still the caller's (n, from 1); then the claimed items, for these runs in this order;
-- then, if a chain has ended, one row with how much is due all the same (remaining).
-- `from_last`: resume the index scan after the last item of these runs, as from_* of begin_run() does; false: from the oldest.
CREATE OR REPLACE FUNCTION takt.go_on(tick_ids text[], run_ids bigint[], next_runs bigint[], oldests double precision[], tooks double precision[],
                           reporteds jsonb[], durations text[], noops text[], has_keys boolean, the_job integer, window_ms bigint,
                           the_worker text, lease_ms bigint, most integer, from_last boolean)
RETURNS TABLE (n integer, remaining integer, source text, locked boolean, item_id bigint, attempt integer, key text, payload text,
               age_ms bigint, overdue_ms bigint)
LANGUAGE plpgsql SET lock_timeout = '500ms' SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
  mine integer[]; begans timestamptz[]; from_priorities smallint[]; from_run_ats timestamptz[]; from_ids bigint[];
  from_priority smallint; from_run_at timestamptz; from_id bigint; chains integer; dealt bigint; picked tid[];
BEGIN
  WITH fenced AS (
    UPDATE takt.ticks t
       SET run_id = w.next_run, begun_at = now(),
           lease_until = CASE WHEN t.lease_until < now() + lease_ms * interval '0.9 ms' THEN now() + lease_ms * interval '1 ms' ELSE t.lease_until END
      FROM unnest(tick_ids, run_ids, next_runs) WITH ORDINALITY AS w(tick, run, next_run, n), takt.runs r
     WHERE t.id = w.tick AND t.run_id = w.run AND coalesce(t.finished_at, 'infinity') = 'infinity'  -- coalesce(), so that the planner takes ticks_pkey and no partial index
       AND r.id = w.run AND r.started_at = t.begun_at
    RETURNING w.n::integer AS n, r.started_at, r.last_priority, r.last_run_at, r.last_id)
  SELECT array_agg(f.n), array_agg(f.started_at), array_agg(f.last_priority), array_agg(f.last_run_at), array_agg(f.last_id)
    INTO mine, begans, from_priorities, from_run_ats, from_ids
    FROM (SELECT * FROM fenced ORDER BY last_priority, last_run_at, last_id) f;
  IF mine IS NULL THEN
    RETURN;
  END IF;
  FOREACH n IN ARRAY mine LOOP
    RETURN NEXT;
  END LOOP;
  n := NULL;
  IF has_keys THEN
    UPDATE takt.item_keys k SET expires_at = now() + window_ms * interval '1 ms'
      FROM unnest(mine, begans) AS m(n, began), takt.runs r CROSS JOIN LATERAL takt.items_of(r) h
     WHERE r.id = run_ids[m.n] AND r.started_at = m.began AND k.job_id = the_job AND k.key = h.key AND k.item_id = h.id;
  END IF;
  chains := cardinality(mine);
  from_priority := from_priorities[chains];
  from_run_at := from_run_ats[chains];
  from_id := from_ids[chains];
  LOOP
    IF NOT from_last OR from_id IS NULL THEN
      from_priority := -32768;
      from_run_at := '-infinity';
      from_id := -1;
    END IF;
    IF most * chains > 512 THEN
      picked := takt.claimable(the_job, from_priority, from_run_at, from_id,
                               CASE WHEN (SELECT j.paused OR j.removed_at IS NOT NULL FROM takt.jobs j WHERE j.id = the_job)
                                    THEN 0 ELSE most * chains END);
    END IF;
    RETURN QUERY
      WITH taken AS (
        DELETE FROM takt.items i
         WHERE i.ctid = ANY (CASE WHEN picked IS NOT NULL THEN picked ELSE
                               ARRAY(SELECT d.ctid FROM takt.items d
                                      WHERE d.job_id = the_job AND d.state = 0 AND d.run_at <= now()
                                        AND (d.priority, d.run_at, d.id) > (from_priority, from_run_at, from_id)
                                      ORDER BY d.priority, d.run_at, d.id
                                      LIMIT CASE WHEN (SELECT j.paused OR j.removed_at IS NOT NULL FROM takt.jobs j WHERE j.id = the_job)
                                                 THEN 0 ELSE most * chains END
                                      FOR UPDATE SKIP LOCKED) END)
        RETURNING i.id, i.attempt + 1 AS attempt, i.replay, i.priority, i.run_at, i.enqueued_at, i.key, i.payload),
      ordered AS MATERIALIZED (SELECT * FROM taken ORDER BY priority, run_at, id),
      whole AS MATERIALIZED (
        SELECT count(*)::integer AS count, array_agg(id) AS ids, CASE WHEN count(key) > 0 THEN array_agg(key) END AS keys,
               array_agg(ROW(attempt, replay, priority, run_at, enqueued_at, payload)::takt.claimed_item) AS items
          FROM ordered),
      shares AS MATERIALIZED (
        SELECT m.n, m.began, ((place - 1) * most + 1)::integer AS first, least(place * most, whole.count)::integer AS last
          FROM unnest(mine, begans) WITH ORDINALITY AS m(n, began, place), whole),
      ended AS (
        UPDATE takt.runs r
           SET status = 'completed', finished_at = now(), scanned = w.scanned, done = w.scanned - w.noop, noop = w.noop,
               remaining = greatest(w.last - w.first + 1, 0), oldest_age_s = oldests[w.n], duration_ms = tooks[w.n],
               reported = reporteds[w.n], noops = w.noops, durations = w.durations
          FROM (SELECT s.*, d.durations, o.noops, cardinality(d.durations) AS scanned, coalesce(cardinality(o.noops), 0) AS noop
                  FROM shares s, LATERAL (SELECT durations[s.n]::real[] AS durations OFFSET 0) d,
                       LATERAL (SELECT noops[s.n]::bigint[] AS noops OFFSET 0) o) w
         WHERE r.id = run_ids[w.n] AND r.started_at = w.began),
      stored AS (
        INSERT INTO takt.runs (id, started_at, job_id, tick_id, trigger, worker, status, item_min, item_max, last_priority, last_run_at,
                               last_id, item_ids, items, keys)
        SELECT next_runs[s.n], now(), the_job, tick_ids[s.n], 'due', the_worker, 'running', bounds.least, bounds.greatest,
               (final).priority, (final).run_at, ids[last], ids[first:last], items[first:last], keys[first:last]
          FROM shares s, whole, LATERAL (SELECT min(i) AS least, max(i) AS greatest FROM unnest(ids[first:last]) i) bounds,
               LATERAL (SELECT items[last] AS final OFFSET 0) f
         WHERE first <= last)
      SELECT NULL::integer, NULL::integer, 'more', false, o.id, o.attempt, o.key, o.payload::text,
             (extract(epoch FROM now() - greatest(o.enqueued_at, 'epoch')) * 1000)::bigint, (extract(epoch FROM now() - greatest(o.run_at, 'epoch')) * 1000)::bigint
        FROM ordered o;
    GET DIAGNOSTICS dealt = ROW_COUNT;
    IF dealt > most * (chains - 1) THEN
      RETURN;
    END IF;
    EXIT WHEN dealt > 0 OR from_id = -1;
    from_last := false;
  END LOOP;
  SELECT count(*) INTO remaining FROM (
    SELECT 1 FROM takt.items i WHERE i.job_id = the_job AND i.state = 0 AND i.run_at <= now() LIMIT 100) x;
  WITH over AS MATERIALIZED (
    SELECT m.n, m.began FROM unnest(mine, begans) WITH ORDINALITY AS m(n, began, place) WHERE (place - 1) * most >= dealt),
  counted AS (
    UPDATE takt.runs r SET remaining = go_on.remaining FROM over o
     WHERE go_on.remaining > 0 AND r.id = run_ids[o.n] AND r.started_at = o.began)
  UPDATE takt.ticks t SET run_id = run_ids[o.n], begun_at = o.began, finished_at = now(), lease_until = NULL, items = NULL
    FROM over o WHERE t.id = tick_ids[o.n];
  RETURN NEXT;
END $$;
