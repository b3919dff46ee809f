#include <poll.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <set>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/amqp/channel.h"
#include "core/amqp/topology.h"
#include "core/db/query.h"
#include "core/text/text.h"
#include "core/tick/tick.h"

namespace takt {

namespace {

/// A quarantined body is at most 64 KiB (worker/intake.cc), so this bounds what is held.
constexpr int kMostShown = 1000;
/// The broker has sent nothing more for so long: that was all.
constexpr Duration kQuiet = std::chrono::milliseconds(500);
constexpr Duration kLongest = std::chrono::seconds(10);

using Messages = std::vector<amqp::Delivery>;

std::vector<std::string> reject_reasons() {
  std::vector<std::string> words;
  for (int i = 0; i < kRejectReasons; ++i) words.emplace_back(to_string(static_cast<RejectReason>(i)));
  return words;
}

/// The oldest messages, which stay where they are: they are taken and given back, and come again in another order at most. Those
/// that `discarded` names by their places are removed.
Messages look_at_quarantine(
    Context& context, int most,
    const std::function<std::set<std::size_t>(const Messages&)>& discarded = [](const auto&) { return std::set<std::size_t>(); }) {
  amqp::Channel channel(context.broker("takt quarantine"));
  const auto queue = channel.inspect_queue(amqp::kQuarantineQueue);
  if (!queue) throw CommandFailed("queue " + amqp::kQuarantineQueue + " is missing; run \"takt migrate\"");
  Messages messages;
  if (queue->messages == 0) return messages;
  channel.consume(amqp::kQuarantineQueue, "takt:quarantine", static_cast<std::uint16_t>(most));
  const auto begin = std::chrono::steady_clock::now();
  for (auto last = begin; messages.size() < std::min<std::size_t>(static_cast<std::size_t>(most), queue->messages);) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last > kQuiet || now - begin > kLongest) break;
    if (!channel.has_buffered()) {
      pollfd descriptor{channel.socket(), POLLIN, 0};
      ::poll(&descriptor, 1, static_cast<int>(kQuiet.count() / 5));
    }
    channel.process([&](amqp::Event&& event) {
      if (auto* delivery = std::get_if<amqp::Delivery>(&event); delivery != nullptr && messages.size() < static_cast<std::size_t>(most)) {
        messages.push_back(std::move(*delivery));
        last = std::chrono::steady_clock::now();
      }
    });
  }
  channel.cancel("takt:quarantine");
  const auto gone = discarded(messages);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (gone.contains(i))
      channel.ack(messages[i].tag, false);
    else
      channel.reject(messages[i].tag, true);
  }
  if (messages.empty())
    throw CommandFailed(std::to_string(queue->messages) +
                        " messages are in quarantine, and somebody else is looking at them at this moment; try again");
  // What was looked at goes behind the others.
  std::stable_sort(messages.begin(), messages.end(),
                   [](const auto& a, const auto& b) { return a.header("takt-at").value_or("") < b.header("takt-at").value_or(""); });
  return messages;
}

nlohmann::json header_of(const amqp::Delivery& message, const char* name) {
  const auto value = message.header(name);
  return value ? nlohmann::json(printable(*value, 256)) : nlohmann::json(nullptr);
}

/// What its sender said when it was sent: nobody has vouched for it.
nlohmann::json claimed_time(const amqp::Delivery& message) {
  const auto text = message.header("webhook-timestamp").value_or("");
  std::int64_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || seconds < 0 || seconds > 253'402'300'799) return nullptr;
  return shown_time(from_unix_us(seconds * 1'000'000));
}

std::int64_t bytes_of(const amqp::Delivery& message) {
  const auto text = message.header("takt-bytes").value_or("");
  std::int64_t bytes = static_cast<std::int64_t>(message.body_size);
  std::from_chars(text.data(), text.data() + text.size(), bytes);
  return bytes;
}

CommandFailed no_message(const std::string& id) {
  return CommandFailed("no message \"" + printable(id, 64) + "\" among the oldest " + std::to_string(kMostShown) + " of the quarantine");
}

void list(Context& context, const std::string& reason, int limit, bool json) {
  Table table({"message", "reason", {"queue", 1}, "tick", {"sent_at", 1}, {"bytes", 2}});
  for (const auto& message : look_at_quarantine(context, reason.empty() ? limit : kMostShown)) {
    if (!reason.empty() && message.header("takt-reason").value_or("") != reason) continue;
    if (--limit < 0) break;
    table.add({printable(message.message_id, 64), header_of(message, "takt-reason"), header_of(message, "takt-queue"),
               header_of(message, "webhook-id"), claimed_time(message), bytes_of(message)});
  }
  table.print(json, reason.empty() ? "nothing is in quarantine" : "nothing is in quarantine for reason \"" + printable(reason, 60) + "\"");
}

struct Discard {
  std::string who;
  std::vector<std::string> ids;
  static constexpr auto fields() { return std::tuple(&Discard::who, &Discard::ids); }
};
constexpr Query<Discard, NoRow> kDiscarded{
    "quarantine_discarded",
    "INSERT INTO takt.audit (who, origin, action, subject) SELECT $1, 'command line', 'quarantine discard',"
    " 'message ' || id FROM unnest($2::text[]) id"};

struct Discarding {
  std::vector<std::string> ids;
  std::string reason, by;
  bool all = false, yes = false, json = false;

  [[nodiscard]] bool chosen(const amqp::Delivery& message) const {
    if (!ids.empty()) return std::find(ids.begin(), ids.end(), message.message_id) != ids.end();
    return reason.empty() || message.header("takt-reason").value_or("") == reason;
  }
};

/// At most kMostShown at a time, since so many are looked at. In one look: what is asked about is what is removed.
void discard(Context& context, const Discarding& options) {
  if (options.ids.empty() && options.reason.empty() && !options.all) throw UsageError("say which: ids, --reason, or --all");
  auto& database = context.current_database();
  std::vector<std::string> removed;
  look_at_quarantine(context, kMostShown, [&](const Messages& messages) {
    std::set<std::size_t> chosen;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      if (!options.chosen(messages[i])) continue;
      chosen.insert(i);
      removed.push_back(messages[i].message_id);
    }
    if (chosen.empty()) return chosen;
    const auto count = std::to_string(chosen.size()) + (chosen.size() == 1 ? " message" : " messages");
    if (!confirm("remove " + count + " from the quarantine for ever?", options.yes)) throw CommandFailed("nothing done");
    execute_retrying(database, kDiscarded, {Context::who(options.by), removed});
    return chosen;
  });
  if (removed.empty() && options.ids.empty()) return say(options.json, {{"discarded", 0}}, "no such message is in quarantine");
  if (!removed.empty())
    say(options.json, {{"discarded", removed.size()}},
        "discarded " + std::to_string(removed.size()) + (removed.size() == 1 ? " message" : " messages"));
  for (const auto& id : options.ids) {
    if (std::find(removed.begin(), removed.end(), id) == removed.end()) throw no_message(id);
  }
}

void show(Context& context, const std::string& id, bool json) {
  for (const auto& message : look_at_quarantine(context, kMostShown)) {
    if (message.message_id != id) continue;
    const nlohmann::ordered_json shown{{"message", id},
                                       {"reason", header_of(message, "takt-reason")},
                                       {"queue", header_of(message, "takt-queue")},
                                       {"tick", header_of(message, "webhook-id")},
                                       {"sent_at", claimed_time(message)},
                                       {"bytes", bytes_of(message)},
                                       {"content_type", printable(message.content_type, 100)},
                                       {"body", printable(message.body, message.body.size() + 1)}};
    return print_object(shown, json);
  }
  throw no_message(id);
}

}  // namespace

void add_quarantine(CLI::App& app, Context& context) {
  auto* quarantine = app.add_subcommand("quarantine", "list messages that are no genuine ticks, oldest first; show one, discard");
  auto reason = std::make_shared<std::string>();
  auto limit = std::make_shared<int>(20);
  auto json = std::make_shared<bool>(false);
  add_listing(
      quarantine,
      [=](CLI::App* command) {
        command->add_option("--reason", *reason, "only those refused for this")->check(CLI::IsMember(reject_reasons()));
        command->add_option("--limit", *limit, "at most so many")->check(CLI::Range(1, kMostShown))->capture_default_str();
        command->add_flag("--json", *json, "as JSON");
      },
      [&context, reason, limit, json] { list(context, *reason, *limit, *json); });
  add_showing<std::string>(quarantine, "one message, with its body as far as it was kept", "its id, as the list shows it",
                           [&context](const std::string& id, bool as_json) { show(context, id, as_json); });
  auto discarding = std::make_shared<Discarding>();
  auto* command = quarantine->add_subcommand("discard", "remove messages for ever, at most 1,000 at a time");
  auto* ids = command->add_option("id", discarding->ids, "messages by id");
  auto* all_of = command->add_option("--reason", discarding->reason, "all that were refused for this")
                     ->check(CLI::IsMember(reject_reasons()))
                     ->excludes(ids);
  command->add_flag("--all", discarding->all, "all")->excludes(ids)->excludes(all_of);
  command->add_flag("--yes", discarding->yes, "do not ask");
  command->add_option("--by", discarding->by, "who is acting, for the audit; default: the login name");
  command->add_flag("--json", discarding->json, "the outcome as JSON");
  command->callback([&context, discarding] { discard(context, *discarding); });
}

}  // namespace takt
