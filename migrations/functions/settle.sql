-- The end of a run: what became of each item, the dead letters, the keys, and whether more is to be done.
--
-- Locks: the tick's row first, which is the fence; then the keys and the run's own row. lock_timeout is 500 ms, because the
-- worker that settles must be back in time to renew its lease, which may be as short as 2 s; it tries again.
-- Indexes: ticks_pkey, runs_pkey, item_keys_pkey; items_due for what remains. Planner settings as in claim.sql.

-- Ends a run. `recorded` is false, and nothing is changed, where the run lost its lease or was ended before.
-- Items that `ids` does not name ended done, or noop if `the_noops` names them, and stay in the run's row. Those it names leave
-- it: with state 0 or 5 back to takt.items, due after `delays` ms; with state 3 to takt.ended_items, and a dead letter into the
-- outbox.
-- `drains`: if more is due, the run may be continued (`continues`). The continuation's tick is stored as `next_tick`, unless that
-- is NULL because the same worker goes on at once.
-- `counts`: scanned, done, noop, skipped, blocked, error, dead, handed back.
-- `remaining`: due items behind this run's last one, counted up to 100; if there are none, all due ones.
CREATE OR REPLACE FUNCTION takt.end_run(the_tick text, the_run bigint, the_job integer, job_name text, window_ms bigint, exclusive boolean,
                             the_status text, counts integer[], oldest_s double precision, took_ms double precision,
                             the_errors jsonb, the_reported jsonb, the_durations real[], the_noops bigint[], has_keys boolean,
                             ids bigint[], states smallint[], classes text[], delays bigint[], unspent smallint[], reasons text[],
                             messages text[], dead_reasons text[], drains boolean, next_tick text,
                             OUT recorded boolean, OUT remaining integer, OUT continues boolean, OUT from_priority smallint,
                             OUT from_run_at timestamptz, OUT from_id bigint)
LANGUAGE plpgsql SET lock_timeout = '500ms' SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
  began timestamptz;
BEGIN
  UPDATE takt.ticks t SET finished_at = now(), lease_until = NULL, items = NULL
   WHERE t.id = the_tick AND t.run_id = the_run AND t.finished_at IS NULL
  RETURNING t.begun_at INTO began;
  recorded := FOUND;
  remaining := 0;
  continues := false;
  IF NOT recorded THEN
    RETURN;
  END IF;
  IF has_keys THEN
    UPDATE takt.item_keys k SET expires_at = now() + window_ms * interval '1 ms'
      FROM takt.runs r CROSS JOIN LATERAL takt.items_of(r) h
     WHERE r.id = the_run AND r.started_at = began AND k.job_id = the_job AND k.key = h.key AND k.item_id = h.id
       AND NOT EXISTS (SELECT 1 FROM unnest(ids, states) AS o(id, state) WHERE o.id = h.id AND o.state IN (0, 5));
  END IF;
  IF ids IS NOT NULL THEN
    WITH named AS MATERIALIZED (
      SELECT h.id, h.replay, h.priority, h.attempt - o.unspent AS attempt, h.run_at, h.enqueued_at, h.key, h.payload,
             the_durations[h.n] AS took, o.state, o.class, o.unspent, o.reason, o.message, o.dead_reason,
             now() + o.delay_ms * interval '1 ms' AS next_at
        FROM takt.runs r CROSS JOIN LATERAL takt.items_of(r) h
        JOIN unnest(ids, states, classes, delays, unspent, reasons, messages, dead_reasons)
             AS o(id, state, class, delay_ms, unspent, reason, message, dead_reason) ON o.id = h.id
       WHERE r.id = the_run AND r.started_at = began),
    back AS (
      INSERT INTO takt.items (id, job_id, state, priority, replay, attempt, run_at, enqueued_at, key, payload)
      SELECT id, the_job, state, priority, replay, attempt, next_at, enqueued_at, key, payload FROM named WHERE state IN (0, 5)),
    ended AS (
      INSERT INTO takt.ended_items (id, finished_at, job_id, state, class, priority, attempts, replay, run_id, run_at, enqueued_at,
                                    duration_ms, key, payload)
      SELECT id, now(), the_job, state, class, priority, attempt, replay, the_run, run_at, enqueued_at, took, key, payload
        FROM named WHERE state = 3),
    failed AS (
      INSERT INTO takt.failed_attempts (item_id, at, job_id, replay, attempt, run_id, class, reason, error, duration_ms, next_run_at)
      SELECT id, now(), the_job, replay, attempt, the_run, class, reason, message, took, CASE WHEN state = 0 THEN next_at END
        FROM named WHERE unspent = 0)
    INSERT INTO takt.dead_letter_outbox (id, body)
    SELECT takt.dead_letter_id(id, replay),
           takt.dead_letter(id, replay, job_name, dead_reason,
                            CASE WHEN reason IN (dead_reason, '') THEN message ELSE reason || ': ' || message END,
                            key, payload, attempt, priority)
      FROM named WHERE state = 3
    ON CONFLICT (id) DO NOTHING;
    UPDATE takt.runs r
       SET (item_ids, items, keys, durations) = (
             SELECT coalesce(array_agg(id), '{}'), coalesce(array_agg(ROW(attempt, replay, priority, run_at, enqueued_at, payload)::takt.claimed_item), '{}'),
                    CASE WHEN count(key) > 0 THEN array_agg(key) END, coalesce(array_agg(the_durations[n]), '{}')
               FROM (SELECT * FROM takt.items_of(r) h WHERE h.id <> ALL (ids) ORDER BY h.n) kept)
     WHERE r.id = the_run AND r.started_at = began;
  END IF;
  IF exclusive THEN
    DELETE FROM takt.job_locks WHERE job_id = the_job AND run_id = the_run;
  END IF;
  SELECT last_priority, last_run_at, last_id INTO from_priority, from_run_at, from_id FROM takt.runs WHERE id = the_run AND started_at = began;
  IF from_id IS NOT NULL THEN
    SELECT count(*) INTO remaining FROM (
      SELECT 1 FROM takt.items i WHERE i.job_id = the_job AND i.state = 0 AND i.run_at <= now()
         AND (i.priority, i.run_at, i.id) > (from_priority, from_run_at, from_id) LIMIT 100) x;
  END IF;
  IF remaining = 0 THEN
    SELECT count(*) INTO remaining FROM (
      SELECT 1 FROM takt.items i WHERE i.job_id = the_job AND i.state = 0 AND i.run_at <= now() LIMIT 100) x;
  END IF;
  continues := drains AND remaining > 0 AND NOT (SELECT j.paused OR j.removed_at IS NOT NULL FROM takt.jobs j WHERE j.id = the_job);
  IF continues AND next_tick IS NOT NULL THEN
    INSERT INTO takt.ticks (id, job_id, source, due_at, published_at) VALUES (next_tick, the_job, 'more', now(), now());
  END IF;
  UPDATE takt.runs
     SET status = the_status, finished_at = now(), scanned = counts[1], done = counts[2], noop = counts[3], skipped = counts[4],
         blocked = counts[5], error = counts[6], dead = counts[7], handed_back = counts[8], remaining = end_run.remaining,
         oldest_age_s = oldest_s, duration_ms = took_ms, errors = the_errors, reported = the_reported, noops = the_noops,
         durations = CASE WHEN ids IS NULL THEN the_durations ELSE durations END
   WHERE id = the_run AND started_at = began;
END $$;
