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

// Newest first, by the primary key; with a subject by audit_subject.
constexpr Statement kAudit{"audit_list", R"sql(
  SELECT id, takt.shown(at), who, origin, action, subject, detail::text
    FROM takt.audit
   WHERE ($1::text IS NULL OR who = $1) AND ($2::text IS NULL OR action = $2)
     AND ($3::text IS NULL OR subject = $3 OR subject = 'job ' || $3) AND ($4::timestamptz IS NULL OR at >= $4)
   ORDER BY id DESC LIMIT $5
)sql"};

// By the primary key backwards, and audit_subject.
constexpr Statement kKnown{"audit_known", R"sql(
  SELECT $1::text IS NULL OR EXISTS (SELECT FROM takt.audit WHERE who = $1), $2::text IS NULL OR EXISTS (SELECT FROM takt.audit WHERE action = $2),
         $3::text IS NULL OR EXISTS (SELECT FROM takt.audit WHERE subject IN ($3, 'job ' || $3)) OR EXISTS (SELECT FROM takt.jobs WHERE $3 IN (name, 'job ' || name))
)sql"};

/// Of names that nothing in the audit bears, the first is most likely mistyped.
void require_known(Database& database, const AuditFilter& filter) {
  const auto known =
      database.exec(kKnown, Params::of(optional_text(filter.who), optional_text(filter.action), optional_text(filter.subject)));
  const auto unknown = [](const std::string& what, const std::string& name) {
    return CommandFailed("the audit has nothing " + what + " \"" + printable(name, 100) + "\"; \"takt audit\" shows what it has");
  };
  if (!known.boolean(0, 0)) throw unknown("by", filter.who);
  if (!known.boolean(0, 1)) throw unknown("of the action", filter.action);
  if (!known.boolean(0, 2)) throw unknown("of the subject", filter.subject);
}

void list(Context& context, const AuditFilter& filter) {
  const auto since =
      filter.since.empty() ? std::nullopt : std::optional(parse_moment(filter.since, "--since", [&] { return context.now(); }));
  const auto rows = context.current_database().exec(
      kAudit, Params::of(optional_text(filter.who), optional_text(filter.action), optional_text(filter.subject), since, filter.limit));
  if (rows.empty()) require_known(context.database(), filter);
  Table table({{"act", 3}, "at", "who", {"origin", 2}, "action", "subject", {"parameters", 1}});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    table.add({rows.integer(i, 0), text_or_null(rows, i, 1), text_or_null(rows, i, 2), text_or_null(rows, i, 3), text_or_null(rows, i, 4),
               text_or_null(rows, i, 5), rows.is_null(i, 6) ? nlohmann::json(nullptr) : nlohmann::json::parse(rows.text(i, 6))});
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
