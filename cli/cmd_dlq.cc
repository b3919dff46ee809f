#include <unistd.h>

#include <iostream>
#include <thread>

#include "cli/commands.h"
#include "cli/letter_editor.h"
#include "cli/services.h"
#include "cli/table.h"
#include "core/db/query.h"
#include "core/installation/troubles.h"
#include "core/text/text.h"
#include "dlq/operations.h"

namespace takt {

namespace {

constexpr int kBatch = 100;
constexpr std::size_t kMostRefused = 1000;
constexpr std::size_t kMostEdited = 8 * 1024 * 1024;  // pretty-printed, so more than a payload

struct LetterOptions {
  std::vector<std::string> ids;
  std::string job, reason, kind, state, text, since, until, by;
  bool all = false, yes = false, json = false;
  int limit = 20;
  double rate = 0;
};

void add_ids(CLI::App* command, LetterOptions& options) { command->add_option("id", options.ids, "dead letters by id"); }

void add_filter(CLI::App* command, LetterOptions& options) {
  command->add_option("--job", options.job, "only this job's");
  command->add_option("--reason", options.reason, "max_attempts, max_age, fatal reason, unknown_job, delivery_limit, rejected, …");
  command->add_option("--kind", options.kind, "item, tick or message")->check(CLI::IsMember({"item", "tick", "message"}));
  command->add_option("--text", options.text, "text in payload, error or key");
  command->add_option("--since", options.since, "died since a time or an age (2h)");
  command->add_option("--until", options.until, "died before a time or an age");
}

LetterFilter filter_of(Context& context, const LetterOptions& options) {
  LetterFilter filter;
  filter.ids = options.ids;
  filter.job = optional_text(options.job);
  filter.reason = optional_text(options.reason);
  filter.kind = optional_text(options.kind);
  filter.state = optional_text(options.state);
  filter.text = optional_text(options.text);
  const auto now = [&] { return context.now(); };
  if (!options.since.empty()) filter.since = parse_moment(options.since, "--since", now);
  if (!options.until.empty()) filter.until = parse_moment(options.until, "--until", now);
  return filter;
}

CommandFailed no_letter(const std::string& id) {
  const bool number = !id.empty() && id.find_first_not_of("0123456789") == std::string::npos;
  return CommandFailed("no dead letter \"" + printable(id, 200) + "\"" +
                       (number ? "; that of an item is named item-" + printable(id, 20) + "-0, and \"takt dlq\" lists them" : ""));
}

/// The default would be everything: that must be said.
void require_selection(const LetterOptions& options) {
  const bool selected = !options.ids.empty() || !options.job.empty() || !options.reason.empty() || !options.kind.empty() ||
                        !options.text.empty() || !options.since.empty() || !options.until.empty();
  if (!selected && !options.all) throw UsageError("say which: ids, a filter (--job, --reason, --since, …), or --all");
}

struct Reasons {
  std::string all;
  bool known = false;
  static constexpr auto fields() { return std::tuple(Field("reasons", &Reasons::all), Field("known", &Reasons::known)); }
};
constexpr Query<One<std::string>, Reasons> kReasons{
    "letter_reasons",
    "SELECT coalesce(string_agg(reason, ', '), 'none') AS reasons, coalesce(bool_or(reason = $1), false) AS known FROM"
    " (SELECT DISTINCT reason FROM takt.dead_letters ORDER BY reason LIMIT 1000) r"};

/// What none was ever archived for is most likely mistyped. Reads the archive, where there is no letter of it.
void require_reason(Database& database, const std::string& reason) {
  const auto reasons = query(database, kReasons, {reason}).at(0);
  if (reasons.known) return;
  throw CommandFailed("no dead letter has the reason \"" + printable(reason, 100) + "\"; there are: " + printable(reasons.all, 500));
}

void list(Context& context, const LetterOptions& options) {
  auto& database = context.current_database();
  const auto letters = list_letters(database, filter_of(context, options), options.limit);
  if (letters.empty() && !options.job.empty()) require_job(database, options.job);
  if (letters.empty() && !options.reason.empty()) require_reason(database, options.reason);
  Table table({"letter",
               {"kind", 3},
               "job",
               {"reason", 1},
               {"attempts", 3},
               "died_at",
               {"state", 1},
               {"changed_at", 4},
               {"changed_by", 4},
               {"item", 5},
               {"key", 2},
               "error"});
  const auto or_null = [](const auto& value) { return value ? nlohmann::json(*value) : nlohmann::json(nullptr); };
  for (const auto& letter : letters) {
    const auto changed_at = letter.changed_at ? nlohmann::json(shown_time(*letter.changed_at)) : nlohmann::json(nullptr);
    table.add({letter.id, letter.kind, letter.job, letter.reason, letter.attempts, shown_time(letter.died_at), letter.state, changed_at,
               or_null(letter.changed_by), or_null(letter.item_id), or_null(letter.key), letter.error});
  }
  table.print(options.json, "no dead letters match");
  if (options.json) return;
  for (const auto& one : troubles_of(read_installation(database))) {
    if (one.what == "no_archive") std::cout << one.text << "\n";
  }
}

/// Works through the open letters that match, a batch at a time, and says how far it is.
template <typename Act>
void work_through(Context& context, const LetterOptions& options, const std::string& verb, Act act) {
  require_selection(options);
  auto& database = context.current_database();
  const auto filter = filter_of(context, options);
  const auto total = count_open_letters(database, filter);
  if (total == 0) {
    for (const auto& id : options.ids) {
      if (letter_parts(database, id).empty()) throw no_letter(id);
    }
    if (!options.job.empty()) require_job(database, options.job);
    if (options.json) return;
    std::cout << "no open dead letters match; nothing to " << verb << "\n";
    for (const auto& line : why_not_replayed(database, options.ids, true)) std::cout << line << "\n";
    return;
  }
  if (!confirm(verb + " " + std::to_string(total) + (total == 1 ? " dead letter?" : " dead letters?"), options.yes))
    throw CommandFailed("nothing done");
  const int batch = options.rate > 0 ? std::clamp(static_cast<int>(options.rate), 1, kBatch) : kBatch;
  auto next = std::chrono::steady_clock::now();
  std::int64_t seen = 0;
  const auto ids_limit = static_cast<int>(std::min<std::int64_t>(total, 1'000'000));
  const auto ids = open_letters(database, filter, ids_limit);
  for (std::size_t at = 0; at < ids.size(); at += static_cast<std::size_t>(batch)) {
    std::this_thread::sleep_until(next);
    const std::vector<std::string> part(
        ids.begin() + static_cast<std::ptrdiff_t>(at),
        ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), at + static_cast<std::size_t>(batch))));
    act(database, part);
    seen += static_cast<std::int64_t>(part.size());
    if (options.rate > 0) {
      next += std::chrono::duration_cast<std::chrono::steady_clock::duration>(
          std::chrono::duration<double>(static_cast<double>(part.size()) / options.rate));
    }
    if (!options.json)
      std::cerr << (::isatty(STDERR_FILENO) != 0 ? "\r" : "") << seen << " of " << ids.size()
                << (::isatty(STDERR_FILENO) != 0 && seen < static_cast<std::int64_t>(ids.size()) ? "" : "\n") << std::flush;
  }
}

void replay(Context& context, const LetterOptions& options) {
  Replayed sum;
  std::vector<std::string> refused;  // of the batches with any; at most kMostRefused
  const std::string who = Context::who(options.by);
  work_through(context, options, "replay", [&](Database& database, const std::vector<std::string>& ids) {
    const auto part = replay_letters(database, ids, who);
    if (part.refused > 0 && refused.size() < kMostRefused) refused.insert(refused.end(), ids.begin(), ids.end());
    sum.items += part.items;
    sum.ticks += part.ticks;
    sum.before += part.before;
    sum.refused += part.refused;
  });
  if (options.json) {
    if (sum.before == 0 && !options.ids.empty()) {
      auto replayed = filter_of(context, options);
      replayed.state = "replayed";
      sum.before = static_cast<int>(count_letters(context.database(), replayed)) - sum.items - sum.ticks;
    }
    std::cout << nlohmann::json{{"items_replayed", sum.items},
                                {"ticks_replayed", sum.ticks},
                                {"replayed_before", sum.before},
                                {"refused", sum.refused}}
                     .dump()
              << "\n";
  } else if (sum.items + sum.ticks + sum.before + sum.refused > 0) {
    std::cout << "replayed " << sum.items << (sum.items == 1 ? " item, " : " items, ") << sum.ticks
              << (sum.ticks == 1 ? " tick" : " ticks");
    std::cout << (sum.before > 0 ? "; " + std::to_string(sum.before) + " had been replayed before\n" : "\n");
  }
  if (sum.refused == 0) return;
  std::string why;
  for (const auto& line : why_not_replayed(context.database(), refused, false)) why += "\n" + line;
  throw CommandFailed(std::to_string(sum.refused) + " not replayed:" + why);
}

void discard(Context& context, const LetterOptions& options) {
  int discarded = 0;
  const std::string who = Context::who(options.by);
  work_through(context, options, "discard",
               [&](Database& database, const std::vector<std::string>& ids) { discarded += discard_letters(database, ids, who); });
  if (options.json || discarded > 0) say(options.json, {{"discarded", discarded}}, "discarded " + std::to_string(discarded));
}

void prune(Context& context, const std::string& older_than, bool yes, bool json) {
  const Duration age = older_than.empty() ? context.config().retention.dead_letters : parse_age(older_than, "--older-than");
  auto& database = context.current_database();
  const auto total = count_prunable(database, age);
  if (total > 0 && !confirm("remove " + std::to_string(total) + " dead letters older than " + format_duration(age) + " for ever?", yes)) {
    throw CommandFailed("nothing done");
  }
  std::int64_t removed = 0;
  while (removed < total) {
    const int part = prune_letters(database, age, 1000);
    if (part == 0) break;
    removed += part;
    if (!json) std::cerr << removed << " of " << total << "\n";
  }
  say(json, {{"removed", removed}}, "removed " + std::to_string(removed));
}

struct EditOptions {
  std::string id, by;
  std::optional<std::string> file, payload;
  bool json = false;
};

void require_mendable(const LetterToMend& letter) {
  if (letter.kind == "message")
    throw CommandFailed("\"" + letter.id + "\" is a message, which is only kept: it is never replayed, so not mended");
  if (letter.state != "archived") {
    throw CommandFailed("\"" + letter.id + "\" was " + letter.state + " by " + letter.changed_by + "; only an open letter can be mended");
  }
}

std::string judged(const LetterToMend& letter, const std::string& text) {
  auto payload = mended_payload(letter, text);
  if (const auto* fault = std::get_if<MendFault>(&payload)) throw CommandFailed(fault->text + "; nothing changed");
  return std::get<std::string>(std::move(payload));
}

/// By hand; on a terminal a slip can be mended, too, instead of being lost with the file.
std::string edited(const LetterToMend& letter) {
  LetterEditor editor(letter.pretty + "\n");
  while (true) {
    const auto payload = mended_payload(letter, editor.edit());
    if (const auto* text = std::get_if<std::string>(&payload)) return *text;
    const auto& fault = std::get<MendFault>(payload).text;
    if (::isatty(STDIN_FILENO) == 0) throw CommandFailed(fault + "; nothing changed");
    std::cerr << fault << "\nEnter: edit again; Ctrl-D: give up " << std::flush;
    if (!editor.wait_for_enter()) throw CommandFailed("nothing changed");
  }
}

void say_mended(const EditOptions& options, bool mended, const std::string& text) {
  say(options.json, {{"letter", options.id}, {"mended", mended}}, text);
}

void edit(Context& context, const EditOptions& options) {
  auto& database = context.current_database();
  const auto letter = letter_to_mend(database, options.id);
  if (!letter) throw no_letter(options.id);
  require_mendable(*letter);
  const std::string payload = options.payload ? judged(*letter, *options.payload)
                              : options.file  ? judged(*letter, read_bounded(*options.file, kMostEdited))
                                              : edited(*letter);
  switch (mend_letter(database, *letter, payload, Context::who(options.by))) {
    case Mended::same: return say_mended(options, false, "nothing changed: it holds this already");
    case Mended::changed:
      throw CommandFailed("\"" + letter->id +
                          "\" was changed by somebody else meanwhile, who has the last word; look with \"takt dlq show\"");
    case Mended::edited:
      return say_mended(options, true, "mended " + letter->id + "; \"takt dlq replay " + letter->id + "\" sends it back");
  }
}

}  // namespace

void add_dlq(CLI::App& app, Context& context) {
  auto* dlq = app.add_subcommand("dlq", "list dead letters, newest first; show, edit, replay, discard, prune; archive is the service");

  dlq->add_subcommand("archive", "service: stores what arrives in the dead-letter queue")->callback([&context] {
    context.configure_logging("archive");
    Services(context, {.archive = true}, "archive").run();
  });

  auto listed = std::make_shared<LetterOptions>();
  add_listing(
      dlq,
      [listed](CLI::App* command) {
        add_filter(command, *listed);
        command->add_option("--state", listed->state, "archived, replayed or discarded")
            ->check(CLI::IsMember({"archived", "replayed", "discarded"}));
        command->add_option("--limit", listed->limit, "at most so many")->check(CLI::Range(1, 10000))->capture_default_str();
        command->add_flag("--json", listed->json, "as JSON");
      },
      [&context, listed] { list(context, *listed); });
  add_ids(dlq->get_subcommand("list"), *listed);

  add_showing<std::string>(dlq, "one dead letter, whole, with every attempt's error", "its id",
                           [&context](const std::string& id, bool json) {
                             const auto parts = letter_parts(context.current_database(), id);
                             if (parts.empty()) throw no_letter(id);
                             print_parts(parts, json);
                           });

  auto editing = std::make_shared<EditOptions>();
  auto* edit_command = dlq->add_subcommand("edit", "mend a dead letter's payload in $VISUAL or $EDITOR, before it is replayed");
  edit_command->add_option("id", editing->id, "its id")->required();
  auto* file = edit_command->add_option("--payload", editing->file, "no editor: the new payload is in this file; -: standard input");
  edit_command->add_option("--set", editing->payload, "no editor: the new payload, as JSON")->excludes(file);
  edit_command->add_option("--by", editing->by, "who is acting, for the audit; default: the login name");
  edit_command->add_flag("--json", editing->json, "the outcome as JSON");
  edit_command->callback([&context, editing] { edit(context, *editing); });

  auto options = std::make_shared<LetterOptions>();
  const auto add_acting = [&](const std::string& verb, const std::string& what, void (*act)(Context&, const LetterOptions&)) {
    auto* command = dlq->add_subcommand(verb, what);
    add_ids(command, *options);
    add_filter(command, *options);
    command->add_flag("--all", options->all, "every open dead letter");
    command->add_flag("--yes", options->yes, "do not ask");
    command->add_option("--by", options->by, "who is acting; default: the login name");
    command->add_flag("--json", options->json, "the result as JSON");
    command->callback([&context, options, act] { act(context, *options); });
    return command;
  };
  auto* replay_command = add_acting("replay", "send dead letters back: items live again with no attempts spent", replay);
  replay_command->add_option("--rate", options->rate, "at most so many a second; default: as fast as it goes")
      ->check(CLI::Range(0.01, 100000.0));
  add_acting("discard", "mark dead letters as not to be replayed", discard);

  auto* prune_command = dlq->add_subcommand("prune", "remove old dead letters for ever");
  auto older_than = std::make_shared<std::string>();
  prune_command->add_option("--older-than", *older_than, "an age such as 30d; default: retention.dead_letters");
  prune_command->add_flag("--yes", options->yes, "do not ask");
  prune_command->add_flag("--json", options->json, "the result as JSON");
  prune_command->callback([&context, options, older_than] { prune(context, *older_than, options->yes, options->json); });
}

}  // namespace takt
