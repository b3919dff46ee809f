#include <iostream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/text/text.h"

namespace takt {

namespace {

struct AuditFilter {
  std::string who, action, subject, since;
  int limit = 20;
  bool json = false;
};

struct WhichActs {
  std::optional<std::string> who, action, subject;
  std::optional<Timestamp> since;
  int limit = 0;
  static constexpr auto fields() {
    return std::tuple(&WhichActs::who, &WhichActs::action, &WhichActs::subject, &WhichActs::since, &WhichActs::limit);
  }
};
struct Act {
  std::int64_t id = 0;
  std::string at, who, origin, action, subject;
  std::optional<std::string> parameters;
  static constexpr auto fields() {
    return std::tuple(Field("id", &Act::id), Field("at", &Act::at), Field("who", &Act::who), Field("origin", &Act::origin),
                      Field("action", &Act::action), Field("subject", &Act::subject), Field("parameters", &Act::parameters));
  }
};
// Newest first, by the primary key; with a subject by audit_subject.
constexpr Query<WhichActs, Act> kAudit{"audit_list", R"sql(
  SELECT id, takt.shown(at) AS at, who, origin, action, subject, detail::text AS parameters
    FROM takt.audit
   WHERE ($1::text IS NULL OR who = $1) AND ($2::text IS NULL OR action = $2)
     AND ($3::text IS NULL OR subject = $3 OR subject = 'job ' || $3) AND ($4::timestamptz IS NULL OR at >= $4)
   ORDER BY id DESC LIMIT $5
)sql"};

struct Names {
  std::optional<std::string> who, action, subject;
  static constexpr auto fields() { return std::tuple(&Names::who, &Names::action, &Names::subject); }
};
struct Known {
  bool who = false, action = false, subject = false;
  static constexpr auto fields() {
    return std::tuple(Field("who", &Known::who), Field("action", &Known::action), Field("subject", &Known::subject));
  }
};
// By the primary key backwards, and audit_subject.
constexpr Query<Names, Known> kKnown{"audit_known", R"sql(
  SELECT $1::text IS NULL OR EXISTS (SELECT FROM takt.audit WHERE who = $1) AS who,
         $2::text IS NULL OR EXISTS (SELECT FROM takt.audit WHERE action = $2) AS action,
         $3::text IS NULL OR EXISTS (SELECT FROM takt.audit WHERE subject IN ($3, 'job ' || $3))
           OR EXISTS (SELECT FROM takt.jobs WHERE $3 IN (name, 'job ' || name)) AS subject
)sql"};

/// Of names that nothing in the audit bears, the first is most likely mistyped.
void require_known(Database& database, const AuditFilter& filter) {
  const auto known =
      query(database, kKnown, {optional_text(filter.who), optional_text(filter.action), optional_text(filter.subject)}).at(0);
  const auto unknown = [](const std::string& what, const std::string& name) {
    return CommandFailed("the audit has nothing " + what + " \"" + printable(name, 100) + "\"; \"takt audit\" shows what it has");
  };
  if (!known.who) throw unknown("by", filter.who);
  if (!known.action) throw unknown("of the action", filter.action);
  if (!known.subject) throw unknown("of the subject", filter.subject);
}

void list(Context& context, const AuditFilter& filter) {
  WhichActs which{.who = optional_text(filter.who),
                  .action = optional_text(filter.action),
                  .subject = optional_text(filter.subject),
                  .since = {},
                  .limit = filter.limit};
  if (!filter.since.empty()) which.since = parse_moment(filter.since, "--since", [&] { return context.now(); });
  const auto acts = query(context.current_database(), kAudit, which);
  if (acts.empty()) require_known(context.database(), filter);
  Table table({{"act", 3}, "at", "who", {"origin", 2}, "action", "subject", {"parameters", 1}});
  for (const auto& act : acts) {
    auto cells = cells_of(act);
    if (act.parameters) cells.back() = nlohmann::json::parse(*act.parameters);
    table.add(std::move(cells));
  }
  const bool all = filter.who.empty() && filter.action.empty() && filter.subject.empty() && filter.since.empty();
  table.print(filter.json, all ? "nothing was done by hand, as far as retention.audit reaches"
                               : "nothing in the audit has this who, action, subject and time");
}

}  // namespace

void add_audit(CLI::App& app, Context& context) {
  auto* audit = app.add_subcommand("audit", "list what people did, newest first: who, when, what");
  auto filter = std::make_shared<AuditFilter>();
  add_listing(
      audit,
      [filter](CLI::App* command) {
        command->add_option("--who", filter->who, "only by this one");
        command->add_option("--action", filter->action, "only this: pause, resume, cancel, retry, \"dlq replay\", …");
        command->add_option("--subject", filter->subject, "only of this: a job's name, \"item 4711\", \"job billing.renewals\", …");
        command->add_option("--since", filter->since, "since a time or an age (2h)");
        command->add_option("--limit", filter->limit, "at most so many")->check(CLI::Range(1, 10000))->capture_default_str();
        command->add_flag("--json", filter->json, "as JSON");
      },
      [&context, filter] { list(context, *filter); });
}

}  // namespace takt
