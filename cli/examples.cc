#include "cli/examples.h"

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace takt {

namespace {

struct Example {
  const char* line;
  const char* what;
};

// By the command's words after "takt". A command that only groups others has none.
const std::map<std::string, std::vector<Example>> kExamples{
    {"migrate", {{"takt migrate", "before the services start, and again with each new version"}}},
    {"apply",
     {{"takt apply --dry-run", "what would change"}, {"takt apply --prune --by ann", "also remove jobs that the file no longer names"}}},
    {"check", {{"takt check", "what is wrong here, and what to do"}, {"takt check --file-only", "in a build, where nothing runs"}}},
    {"dispatcher", {{"takt dispatcher --config /etc/takt/takt.yaml", "one of two or more: one leads, the others stand by"}}},
    {"worker",
     {{"takt worker --log-json", "a worker, its log as JSON"},
      {"takt worker --once --job billing.renewals --dry-run", "what is due, without touching it"}}},
    {"up", {{"takt up", "dispatcher, worker and archive in one process"}}},
    {"services", {{"takt services", "who is there, and what is missing"}}},
    {"services list", {{"takt services list --json", "the same for a script"}}},
    {"services forget", {{"takt services forget 6908f4245f95", "a machine that was taken away"}}},
    {"services show", {{"takt services show 6908f4245f95", "one process, by its id or id@host"}}},
    {"jobs", {{"takt jobs", "every job with its state"}}},
    {"jobs list", {{"takt jobs list --wide", "with all columns"}}},
    {"jobs show", {{"takt jobs show billing.renewals", "why it is held or paused, its definition, its schedules"}}},
    {"jobs pause", {{"takt jobs pause billing.renewals --by ann", "no claims and no slots until it is resumed"}}},
    {"jobs resume", {{"takt jobs resume billing.renewals", "what waits begins at once"}}},
    {"jobs run", {{"takt jobs run billing.renewals", "a tick now, beside its schedules"}}},
    {"schedules", {{"takt schedules --job billing.renewals", "the next and the last slot of each"}}},
    {"schedules list", {{"takt schedules list --json", "for a script"}}},
    {"schedules show", {{"takt schedules show billing.renewals/nightly", "with its last five slots and their runs"}}},
    {"schedules pause", {{"takt schedules pause billing.renewals/nightly", "its slots are passed over; the job's items go on"}}},
    {"schedules resume", {{"takt schedules resume billing.renewals/nightly", "from the next slot on"}}},
    {"runs", {{"takt runs --status failed --since 2h", "runs whose worker vanished"}}},
    {"runs list", {{"takt runs list --job billing.renewals --limit 5", "the newest five of a job"}}},
    {"runs show", {{"takt runs show 501", "its items and the first errors"}}},
    {"items", {{"takt items --job billing.renewals --state blocked", "what waits for somebody to mend something"}}},
    {"items list", {{"takt items list --key renewal-7", "every item that had this key"}}},
    {"items show", {{"takt items show 4711", "with every attempt and its error"}}},
    {"items cancel",
     {{"takt items cancel 4711 4712", "two items that are not to run"},
      {"takt items cancel --job billing.renewals --yes", "everything that waits of a job"}}},
    {"items retry",
     {{"takt items retry 4711", "now, instead of after its backoff"},
      {"takt items retry --job billing.renewals --state blocked", "all of them, once the endpoint is mended"}}},
    {"status",
     {{"takt status", "who leads, what is missing, each job's backlog"},
      {"takt status --fail-on any,dead", "for a monitor: exit 1 if anything keeps work from being done, or a letter is open"}}},
    {"top", {{"takt top --interval 5", "the status, every five seconds"}}},
    {"enqueue",
     {{"takt enqueue billing.renewals '{\"customer\": 7}' --key renewal-7", "done once while the key lives"},
      {"takt enqueue billing.renewals --file customers.jsonl", "one item a line"}}},
    {"tick", {{"takt tick billing.renewals --batch-size 1", "try one item of a job"}}},
    {"dlq archive", {{"takt dlq archive", "a service: without it dead letters wait in the broker"}}},
    {"dlq", {{"takt dlq --since 1d", "what died since yesterday"}}},
    {"dlq list", {{"takt dlq list --job billing.renewals --reason max_attempts", "of one job, for one reason"}}},
    {"dlq show", {{"takt dlq show item-4711-0", "payload and every attempt's error"}}},
    {"dlq edit", {{"takt dlq edit item-4711-0", "mend the payload in $EDITOR"}}},
    {"dlq replay",
     {{"takt dlq replay item-4711-0", "one"},
      {"takt dlq replay --job billing.renewals --text http_500 --rate 10", "all whose error says http_500, ten a second"}}},
    {"dlq discard", {{"takt dlq discard --job billing.renewals --until 7d", "not to be replayed: what died more than a week ago"}}},
    {"dlq prune", {{"takt dlq prune --older-than 90d", "gone for ever"}}},
    {"quarantine", {{"takt quarantine --reason bad_signature", "who publishes without the key?"}}},
    {"quarantine list", {{"takt quarantine list --limit 5", "the oldest five"}}},
    {"quarantine discard",
     {{"takt quarantine discard 1f0c3a52", "one"},
      {"takt quarantine discard --reason bad_signature --yes", "all that were refused for this"}}},
    {"quarantine show", {{"takt quarantine show 1f0c3a52", "its body, as far as it was kept"}}},
    {"audit", {{"takt audit --subject billing.renewals", "who paused this?"}}},
    {"audit list", {{"takt audit list --who ann --since 1d", "what ann did today"}}},
    {"keys generate", {{"takt keys generate --file /etc/takt/keys", "a current and a next key, mode 0600"}}},
    {"keys rotate", {{"takt keys rotate --keep-retired 72h", "the old key is accepted three days more"}}},
    {"keys", {{"takt keys", "fingerprints and roles, never secrets"}}},
    {"keys list", {{"takt keys list --json", "fingerprints, as \"takt services\" shows them"}}},
    {"keys show-webhook", {{"takt keys show-webhook billing.renewals", "what the receiver verifies with"}}},
    {"cron next", {{"takt cron next \"0 9 * * 1-5\" --zone Europe/Madrid", "the next five weekdays at nine"}}},
    {"bench drain", {{"takt bench drain --count 10000", "items a second, here"}}},
    {"bench enqueue", {{"takt bench enqueue --connections 20", "from twenty callers at once"}}},
    {"bench http", {{"takt bench http --url https://staging.example.com/noop", "against an endpoint of one's own"}}},
    {"bench latency", {{"takt bench latency", "how long an item waits where nothing else does"}}},
    {"bench ticks", {{"takt bench ticks --count 5000", "the broker's part"}}},
    {"bench schedules", {{"takt bench schedules --count 1000", "a thousand at nine o'clock"}}},
    {"bench all", {{"takt bench all --json", "for comparison with another machine"}}},
    {"reference", {{"takt reference > configuration.md", "every field of takt.yaml"}}},
};

std::string text_of(const std::vector<Example>& examples) {
  std::string text = "Examples:";
  for (const auto& [line, what] : examples) text += std::string("\n  ") + line + "\n      " + what;
  return text;
}

/// How many of the table's entries were given.
std::size_t add(CLI::App& command, const std::string& path) {
  std::size_t given = 0;
  const auto children = command.get_subcommands([](CLI::App*) { return true; });
  const auto found = kExamples.find(path);
  const bool acts = children.empty() || command.get_require_subcommand_min() == 0;
  if (acts != (found != kExamples.end())) throw std::logic_error("takt " + path + ": examples are of what acts, and what acts has some");
  if (acts) {
    command.footer(text_of(found->second));
    ++given;
  }
  for (auto* child : children) given += add(*child, path + " " + child->get_name());
  return given;
}

}  // namespace

void add_examples(CLI::App& app) {
  std::size_t given = 0;
  for (auto* command : app.get_subcommands([](CLI::App*) { return true; })) given += add(*command, command->get_name());
  if (given != kExamples.size()) throw std::logic_error("examples of a command that is not there");
}

}  // namespace takt
