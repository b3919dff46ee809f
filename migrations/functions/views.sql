-- What tools and people read: items and attempts in one place each, and jobs whose destination is left alone. Nothing here is on
-- an item's way, and nothing locks. A query over takt.all_items, finished_items or attempts reads the partitions of takt.runs
-- that its conditions leave: give a time or a job where you can.

-- The items in a run's row, one row each, in the order in which they were claimed (n, from 1). Every reader of a run's items
-- goes through this function.
CREATE OR REPLACE FUNCTION takt.items_of(run takt.runs)
RETURNS TABLE (n bigint, id bigint, attempt integer, replay smallint, priority smallint, run_at timestamptz, enqueued_at timestamptz,
               key text, payload jsonb, duration_ms real) LANGUAGE sql IMMUTABLE ROWS 100 AS $$
  SELECT u.n, u.id, u.attempt, u.replay, u.priority, u.run_at, u.enqueued_at, u.key, u.payload, u.duration_ms
    FROM unnest(run.item_ids, run.items, run.keys, run.durations)
         WITH ORDINALITY AS u(id, attempt, replay, priority, run_at, enqueued_at, payload, key, duration_ms, n) $$;

-- Items in a final state: done ones are read from their run's row, dead and cancelled ones from takt.ended_items.
CREATE OR REPLACE VIEW takt.finished_items AS
  SELECT i.id, r.finished_at, r.job_id, 2::smallint AS state, CASE WHEN i.id = ANY (r.noops) THEN 'noop' ELSE 'done' END AS class,
         i.priority, i.attempt AS attempts, i.replay, r.id AS run_id, i.run_at, i.enqueued_at, i.duration_ms, i.key, i.payload
    FROM takt.runs r CROSS JOIN LATERAL takt.items_of(r) i WHERE r.status = 'completed'
  UNION ALL
  SELECT id, finished_at, job_id, state, class, priority, attempts, replay, run_id, run_at, enqueued_at, duration_ms, key, payload
    FROM takt.ended_items;

-- Items that a run has under way now.
CREATE OR REPLACE VIEW takt.running_items AS
  SELECT i.id, r.job_id, 1::smallint AS state, i.priority, i.attempt, i.replay, r.id AS run_id, i.run_at, i.enqueued_at, i.key, i.payload
    FROM takt.runs r CROSS JOIN LATERAL takt.items_of(r) i WHERE r.status = 'running';

-- Every attempt, once: failed ones from their table, the last attempt of a done item from its run.
CREATE OR REPLACE VIEW takt.attempts AS
  SELECT item_id, replay, attempt, at, job_id, run_id, class, reason, error, duration_ms, next_run_at
    FROM takt.failed_attempts
  UNION ALL
  SELECT id, replay, attempts, finished_at, job_id, run_id, class, '', '', duration_ms, NULL
    FROM takt.finished_items WHERE class IN ('done', 'noop');

-- Every item, whatever its state.
CREATE OR REPLACE VIEW takt.all_items AS
  SELECT id, job_id, takt.state_name(state) AS state, priority, attempt AS attempts, replay, NULL::bigint AS run_id, run_at,
         enqueued_at, NULL::timestamptz AS finished_at, key, payload FROM takt.items
  UNION ALL
  SELECT id, job_id, takt.state_name(state), priority, attempt, replay, run_id, run_at, enqueued_at, NULL, key, payload
    FROM takt.running_items
  UNION ALL
  SELECT id, job_id, takt.state_name(state), priority, attempts, replay, run_id, run_at,
         enqueued_at, finished_at, key, payload FROM takt.finished_items;

-- The destination of a job's items: its URL without the query, or "database NAME". NULL for native functions, and for jobs that
-- are never left alone (circuit_failures: 0).
CREATE OR REPLACE FUNCTION takt.destination_of(definition jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN coalesce(definition #>> '{handler,http,circuit_failures}', definition #>> '{handler,sql,circuit_failures}') = '0' THEN NULL
              ELSE coalesce(substring(definition #>> '{handler,http,url}' FROM '^[^?#]*'), 'database ' || (definition #>> '{handler,sql,database}'))
         END
$$;

-- Until when a failing destination is left alone; NULL where it is not. After that time the next item tries it. Where no item
-- comes, it is still shown for a minute.
CREATE OR REPLACE FUNCTION takt.left_alone_until(destination takt.failing_destinations) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN destination.opened_at IS NOT NULL AND destination.until > now() - interval '1 min' THEN destination.until END
$$;

-- Jobs whose destination is left alone: until when, after how many failures in a row, and why. One row of
-- takt.failing_destinations a failing destination; takt.jobs is read once.
CREATE OR REPLACE VIEW takt.held_jobs AS
  SELECT j.id AS job_id, j.name AS job, d.name AS destination, greatest(d.until, j.held_until) AS until, d.failures, d.since, d.error, d.worker
    FROM takt.failing_destinations d JOIN takt.jobs j ON takt.destination_of(j.definition) = d.name
   WHERE takt.left_alone_until(d) IS NOT NULL AND j.removed_at IS NULL;

-- What keeps a job's ticks from being begun, where workers said so within the last two seconds: they say it again each second.
CREATE OR REPLACE FUNCTION takt.lately_held_for(job takt.jobs) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN job.held_until > now() - interval '2 s' THEN job.held_for END
$$;

-- 'paused'; 'held' where its destination is left alone, or a worker declined its tick a moment ago; else 'active'.
CREATE OR REPLACE FUNCTION takt.job_state(job takt.jobs) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN job.paused THEN 'paused'
              WHEN job.held_until > now() OR takt.lately_held_for(job) IS NOT NULL OR EXISTS (SELECT 1 FROM takt.failing_destinations d
                                                      WHERE d.name = takt.destination_of(job.definition)
                                                        AND takt.left_alone_until(d) IS NOT NULL)
              THEN 'held' ELSE 'active' END
$$;

-- A job's ticks that were published and that no worker has begun: how many, counted up to 10,000, and the age of the oldest.
-- By ticks_unfinished. PostgreSQL inlines this function.
CREATE OR REPLACE FUNCTION takt.ticks_not_begun(the_job integer)
RETURNS TABLE (ticks bigint, oldest_s double precision) LANGUAGE sql STABLE AS $$
  SELECT count(*), coalesce(extract(epoch FROM now() - min(x.publish_at)), 0)::double precision
    FROM (SELECT t.publish_at FROM takt.ticks t
           WHERE t.job_id = the_job AND t.finished_at IS NULL AND t.begun_at IS NULL AND t.published_at IS NOT NULL
           ORDER BY t.publish_at LIMIT 10000) x $$;
