#include "core/config/fields.h"

#include <array>
#include <cstdlib>
#include <sstream>
#include <string_view>

#include "core/time/time.h"

namespace takt {

namespace {

using enum FieldKind;
constexpr double kSecond = 1000;
constexpr double kHour = 3600 * kSecond;
constexpr double kDay = 24 * kHour;
constexpr double kYear = 366 * kDay;

constexpr std::array kTop{
    Field{"database", section, 0, 0, "", nullptr, "how services use PostgreSQL (its address is TAKT_DATABASE_URL)"},
    Field{"broker", section, 0, 0, "", nullptr, "how services use RabbitMQ (its address is TAKT_AMQP_URL)"},
    Field{"dispatcher", section, 0, 0, "", nullptr, "the dispatcher"},
    Field{"worker", section, 0, 0, "", nullptr, "the workers"},
    Field{"metrics", section, 0, 0, "", nullptr, "metrics and health over HTTP"},
    Field{"retention", section, 0, 0, "", nullptr, "how long finished things are kept"},
    Field{"databases", sections, 0, 0, "", nullptr, "databases that `sql` handlers may use, by name"},
    Field{"jobs", sections, 0, 0, "", nullptr, "job definitions, by name"},
};
constexpr std::array kDatabase{
    Field{"pool", integer, 1, 100, "4", nullptr,
          "connections a service opens at most, beside one for a dispatcher's lease, one for a worker's heartbeat and one where the "
          "leader listens"},
    Field{"connect_timeout", duration, kSecond, 60 * kSecond, "5s", nullptr, "to connect, and to wait for a free connection"},
    Field{"statement_timeout", duration, kSecond, kHour, "30s", nullptr,
          "PostgreSQL ends a statement that takes longer; where it says nothing for 5 s more, its connection is given up"},
    Field{"lock_timeout", duration, 100, kHour, "5s", nullptr, "PostgreSQL ends a statement that waits longer for a lock"},
    Field{"pooler", choice, 0, 0, "none", "none|transaction",
          "`transaction` behind pgbouncer in transaction mode: nothing prepared, timeouts set in each transaction (three round trips a "
          "statement), no LISTEN (due items are found every `dispatcher.scan_interval`)"},
};
constexpr std::array kBroker{
    Field{"heartbeat", duration, kSecond, 600 * kSecond, "20s", nullptr, "a silent connection is given up after two of these"},
    Field{"connect_timeout", duration, kSecond, 60 * kSecond, "5s", nullptr, "to connect and log in"},
    Field{"confirm_timeout", duration, 100, 600 * kSecond, "5s", nullptr,
          "a connection on which a message waits longer for its confirm is given up, and the message published on a new one; also one this "
          "old on which a message is refused"},
    Field{"window", integer, 1, 100000, "1000", nullptr, "messages outstanding in a publisher at most, waiting or unconfirmed"},
    Field{"ca_file", text, 0, 4096, "", nullptr, "PEM file with the certificates trusted for amqps; empty: the system's"},
};
constexpr std::array kDispatcher{
    Field{"scan_interval", duration, 10, 60 * kSecond, "200ms", nullptr,
          "how often due items are looked for when no wake-up comes; once a second while nothing is due or under way"},
    Field{"leader_lease", duration, kSecond, 60 * kSecond, "3s", nullptr,
          "a standby leads this long after the leader's last sign of life, at most one second later"},
    Field{"parallel_ticks", integer, 1, 1000, "6", nullptr,
          "ticks of one job with a backlog that are under way at once, unless the job's concurrency is lower"},
    Field{"republish_after", duration, kSecond, kDay, "10m", nullptr,
          "a published schedule tick that no worker has begun is published again after this long"},
};
constexpr std::array kWorker{
    Field{"runs", integer, 1, 1000, "12", nullptr, "runs at once in one process; also the prefetch of each queue"},
    Field{"grace", duration, 0, kHour, "25s", nullptr,
          "after SIGTERM, how long requests in flight may take; what is unfinished then is handed back"},
    Field{"queues", names, 0, 0, "", nullptr, "queues to consume; empty: those of all jobs in the database, new ones within a second"},
    Field{"max_tick_age", duration, 60 * kSecond, 30 * kDay, "24h", nullptr, "a tick signed longer ago is refused"},
    Field{"host_connections", integer, 1, 10000, "50", nullptr, "HTTP connections to one host at most"},
    Field{"http_threads", integer, 1, 16, "2", nullptr, "threads that drive HTTP requests, each with its part of the connections"},
    Field{"outbound_allow", texts, 0, 0, "", nullptr,
          "destinations that `http` jobs may reach; empty: any. Each an address or network, `private`, a host or *.host, http: or https:, "
          "or :port. Any host or network that matches is enough, schemes and ports apart: `[10.0.0.0/8, api.stripe.com, https:]` is https "
          "to that network and to that host"},
    Field{"outbound_deny", texts, 0, 0, "", nullptr, "destinations that they may not reach, in the same form; it wins over outbound_allow"},
    Field{"payload_in_errors", boolean, 0, 0, "false", nullptr,
          "keep the first 500 bytes of an HTTP error's response body in the attempt's error"},
};
constexpr std::array kMetrics{
    Field{"listen", text, 0, 256, "127.0.0.1:0", nullptr,
          "address:port of /metrics, /healthz and /readyz; port 0: any free one, which is logged. The environment variable "
          "TAKT_METRICS_LISTEN comes first"},
};
constexpr std::array kRetention{
    Field{"history", duration, kDay, 3650 * kDay, "30d", nullptr,
          "runs, attempts and finished items (dropped in steps of a seventh, whole days)"},
    Field{"ticks", duration, kDay, 365 * kDay, "3d", nullptr, "finished ticks: the replay guard, so longer than worker.max_tick_age"},
    Field{"dead_letters", duration, kHour, 3650 * kDay, "30d", nullptr, "the dead-letter archive"},
    Field{"audit", duration, kDay, 3650 * kDay, "365d", nullptr, "who did what: applies, pauses, replays, edits, cancels"},
};
constexpr std::array kNamedDatabase{
    Field{"url_env", text, 1, 200, nullptr, nullptr, "environment variable that holds its URL"},
    Field{"role", name, 0, 100, nullptr, nullptr, "role the statements run as (SET ROLE)"},
    Field{"superuser", boolean, 0, 0, "false", nullptr, "allow a role, or a login, that is or can become a superuser"},
    Field{"pool", integer, 1, 100, "4", nullptr, "connections at most, a worker process"},
    Field{"statement_timeout", duration, 100, kHour, "30s", nullptr,
          "PostgreSQL ends a statement that takes longer; where it says nothing for 5 s more, its connection is given up"},
};
constexpr std::array kJob{
    Field{"handler", section, 0, 0, nullptr, nullptr, "what processes an item: exactly one of `http`, `sql`, `native`"},
    Field{"queue", name, 1, 100, "default", nullptr,
          "queue its ticks travel through; services declare it themselves. All jobs together use at most 100"},
    Field{"batch_size", integer, 1, 10000, "100", nullptr, "items a run takes at most"},
    Field{"time_budget", duration, kSecond, 24 * kHour, "60s", nullptr, "a run starts no further item after this long"},
    Field{"lease", duration, 2 * kSecond, kHour, "30s", nullptr, "a lost worker's items come back after this long; renewed while it works"},
    Field{"max_attempts", integer, 1, 1000, "5", nullptr, "attempts an item gets before it is dead"},
    Field{"max_age", duration, kSecond, 10 * kYear, "", nullptr, "an item older than this is dead instead of tried again; empty: no limit"},
    Field{"backoff", section, 0, 0, "", nullptr,
          "pause before the next attempt: a list such as `[1m, 5m, 30m]` (the last repeats), or a section"},
    Field{"dedupe_window", duration, 0, 10 * kYear, "0s", nullptr, "how long after an item's end its key still refuses a second one"},
    Field{"concurrency", integer, 0, 1, "0", nullptr, "1: one run at a time over all workers; 0: no limit"},
    Field{"drain", boolean, 0, 0, "true", nullptr, "while more is due, further ticks follow; false: one batch a tick"},
    Field{"item_per_tick", boolean, 0, 0, "", nullptr, "each tick brings one item of its own; empty: true for a job with schedules"},
    Field{"schedules", list, 0, 0, "", nullptr, "when it ticks"},
};
constexpr std::array kHandler{
    Field{"http", section, 0, 0, "", nullptr, "one signed HTTP request an item"},
    Field{"sql", section, 0, 0, "", nullptr, "one statement an item"},
    Field{"native", section, 0, 0, "", nullptr, "a C++ function of the worker's binary"},
};
constexpr std::array kNative{
    Field{"name", name, 1, 100, nullptr, nullptr, "name it is registered under; `noop` is always there and does nothing"},
};
constexpr std::array kHttp{
    Field{"url", url, 1, 4096, nullptr, nullptr, "http or https, without user information"},
    Field{"method", choice, 0, 0, nullptr, "GET|HEAD|POST|PUT|PATCH|DELETE", "always explicit, since a wrong one fails for ever"},
    Field{"headers", headers, 0, 0, "", nullptr, "further headers; Host, hop-by-hop and webhook-* headers are refused"},
    Field{"bearer_env", text, 0, 200, "", nullptr, "environment variable whose value is sent as Authorization: Bearer"},
    Field{"timeout", duration, 100, 24 * kHour, "30s", nullptr, "for the whole request"},
    Field{"connect_timeout", duration, 100, 5 * 60 * kSecond, "5s", nullptr, "to resolve, connect and agree on TLS"},
    Field{"parallel", integer, 1, 1000, "10", nullptr, "requests of one run in flight at once"},
    Field{"max_response", integer, 0, 1048576, "65536", nullptr, "bytes of a response body that are read; a longer one is an error"},
    Field{"ca_file", text, 0, 4096, "", nullptr, "PEM file with the certificates trusted; empty: the system's"},
    Field{"circuit_failures", integer, 0, 10000, "20", nullptr,
          "after this many failed requests in a row (no answer, or 5xx) the destination is left alone; 0: never"},
    Field{"circuit_rate", integer, 1, 100, "80", nullptr, "also when at least this many of the last 100 requests failed"},
    Field{"circuit_pause", duration, 100, kDay, "10s", nullptr,
          "how long it is left alone; then one request tries, and each failed try doubles the pause. No attempt is spent meanwhile"},
    Field{"circuit_max_pause", duration, 100, kDay, "5m", nullptr, "longest pause"},
};
constexpr std::array kSql{
    Field{"database", name, 1, 100, nullptr, nullptr, "one of `databases`"},
    Field{"statement", text, 1, 65536, nullptr, nullptr,
          "one statement; $1 payload (jsonb), $2 key (text, or null), $3 item id (bigint), $4 attempt (integer), each typed and optional; "
          "a column `result` in its first row "
          "may say done, noop, skipped, blocked, error or fatal"},
};
constexpr std::array kBackoff{
    Field{"base", duration, 1, 30 * kDay, "10s", nullptr, "pause before the second attempt"},
    Field{"factor", number, 1, 10, "2", nullptr, "each further pause is this much longer"},
    Field{"max", duration, 1, 365 * kDay, "1h", nullptr, "longest pause; also the most that Retry-After is honoured for"},
    Field{"jitter", choice, 0, 0, "", "full|none",
          "full: uniform between 0 and the pause; none: exactly the pause. Default: none with a list, which is meant as it is written; "
          "else full"},
    Field{"list", durations, 0, 365 * kDay, "", nullptr, "pauses one by one instead of base and factor"},
};
constexpr std::array kSchedule{
    Field{"name", name, 1, 100, nullptr, nullptr, "unique in its job"},
    Field{"cron", text, 1, 512, "", nullptr, "five or six fields, @daily and the like, @every 90s (docs/cron.md); this or run_at"},
    Field{"run_at", text, 1, 64, "", nullptr, "one tick at this time, such as 2026-12-24T18:00:00Z"},
    Field{"time_zone", text, 1, 100, "UTC", nullptr, "IANA name"},
    Field{"misfire", choice, 0, 0, "once", "skip|once|all",
          "slots missed while no dispatcher ran: none, the latest, or all up to misfire_limit"},
    Field{"misfire_after", duration, 5 * kSecond, kDay, "60s", nullptr, "a slot late by less is merely late, and ticks"},
    Field{"misfire_limit", integer, 1, 1000, "10", nullptr, "most missed slots that run with `all`: the latest ones"},
    Field{"misfire_max_age", duration, 60 * kSecond, 365 * kDay, "24h", nullptr, "slots older than this never run"},
    Field{"jitter", duration, 0, kDay, "0s", nullptr, "each slot is delayed by up to this much, spread evenly over schedules"},
    Field{"payload", json, 0, 0, "{}", nullptr, "payload of the item each tick brings, at most 64 KiB and 32 levels; null: `{}`"},
};

constexpr std::array kSections{
    SectionDoc{"", "The file's top level.", kTop},
    SectionDoc{"database", "", kDatabase},
    SectionDoc{"broker", "", kBroker},
    SectionDoc{"dispatcher", "", kDispatcher},
    SectionDoc{"worker", "", kWorker},
    SectionDoc{"metrics", "", kMetrics},
    SectionDoc{"retention", "", kRetention},
    SectionDoc{"databases.<name>", "A database for `sql` handlers.", kNamedDatabase},
    SectionDoc{"jobs.<name>", "A job. Names: a-z 0-9 . _ -, at most 100 characters, beginning with a letter or digit.", kJob},
    SectionDoc{"jobs.<name>.handler", "", kHandler},
    SectionDoc{"jobs.<name>.handler.http", "", kHttp},
    SectionDoc{"jobs.<name>.handler.sql", "", kSql},
    SectionDoc{"jobs.<name>.handler.native", "", kNative},
    SectionDoc{"jobs.<name>.backoff", "", kBackoff},
    SectionDoc{"jobs.<name>.schedules[]", "", kSchedule},
};

std::string type_of(const Field& field) {
  switch (field.kind) {
    case text: return "text";
    case name: return "name";
    case integer: return "integer";
    case number: return "number";
    case duration: return "duration";
    case boolean: return "true or false";
    case choice: return "choice";
    case url: return "URL";
    case names: return "list of names";
    case texts: return "list of text";
    case headers: return "map of text";
    case json: return "any value";
    case section: return "section";
    case sections: return "sections by name";
    case list: return "list";
    case durations: return "list of durations";
  }
  return "";
}

std::string number_text(double value) {
  std::ostringstream out;
  out << static_cast<long long>(value);
  return out.str();
}

}  // namespace

std::span<const SectionDoc> configuration_sections() { return kSections; }

const SectionDoc& configuration_section(const std::string& path) {
  for (const auto& section : kSections) {
    if (path == section.path) return section;
  }
  std::abort();  // a section is read that is not declared above
}

std::string configuration_reference() {
  std::ostringstream out;
  out << "# Configuration\n\n"
         "Every field of `takt.yaml`. This page is printed by `takt reference`; a test keeps the two equal.\n\n"
         "The file is the one that `--config` names, else `takt.yaml` in the working folder. A file that is named must be there.\n"
         "Without either, what acts as the file says refuses with exit code 2 (services, `apply`, `check`, `worker --once`,\n"
         "`tick`, `jobs run`, `dlq prune` unless its age is given): a wrong folder must not mean \"defaults\". Other commands only\n"
         "need to know how to connect, and take the defaults for that.\n\n"
         "Durations are written `250ms`, `90s`, `5m`, `1h30m`, `7d`. Secrets and addresses are never in the file; they\n"
         "come from the environment:\n\n"
         "| variable | meaning |\n| --- | --- |\n"
         "| `TAKT_DATABASE_URL` | PostgreSQL: `postgresql://user:password@host:port/database` |\n"
         "| `TAKT_AMQP_URL` | RabbitMQ: `amqp://user:password@host:port/vhost`, or `amqps://` with a DNS name that its certificate holds "
         "|\n"
         "| `TAKT_SIGNING_KEYS` | signing keys: `current whsec_…, next whsec_…, retired whsec_… until <time>` |\n"
         "| `TAKT_SIGNING_KEYS_FILE` | instead: a file with the same, one a line, mode 0600 |\n";
  for (const auto& section : kSections) {
    out << "\n## " << (*section.path == '\0' ? "Top level" : "`" + std::string(section.path) + "`") << "\n\n";
    if (*section.doc != '\0') out << section.doc << "\n\n";
    out << "| field | type | allowed | default | meaning |\n| --- | --- | --- | --- | --- |\n";
    for (const auto& field : section.fields) {
      std::string allowed;
      if (field.choices != nullptr) {
        for (const char c : std::string_view(field.choices)) allowed += c == '|' ? std::string(", ") : std::string(1, c);
      } else if (field.kind == integer || field.kind == number) {
        allowed = number_text(field.min) + " to " + number_text(field.max);
      } else if (field.kind == duration) {
        allowed = format_duration(Duration(static_cast<std::int64_t>(field.min))) + " to " +
                  format_duration(Duration(static_cast<std::int64_t>(field.max)));
      }
      const std::string fallback = field.fallback == nullptr ? "required"
                                   : *field.fallback == '\0' ? ""
                                                             : "`" + std::string(field.fallback) + "`";
      out << "| `" << field.key << "` | " << type_of(field) << " | " << allowed << " | " << fallback << " | " << field.doc << " |\n";
    }
  }
  return out.str();
}

}  // namespace takt
