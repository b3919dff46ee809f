#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <initializer_list>
#include <iostream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/process/random.h"
#include "core/text/text.h"
#include "core/tick/tick.h"

namespace takt {

namespace {

/// Writes a file with mode 0600 and puts it in place whole. It belongs to whoever the file before belonged to: that is the services' user,
/// where root rotates.
void write_private(const std::string& path, const Secret& text) {
  const std::string temporary = path + ".new-" + random_id().substr(0, 8);
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) throw CommandFailed(temporary + ": " + std::strerror(errno));
  const auto& bytes = text.reveal();
  struct stat before {};
  const bool owned = ::stat(path.c_str(), &before) != 0 || ::fchown(fd, before.st_uid, before.st_gid) == 0;
  const bool ok = owned && ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) && ::fsync(fd) == 0;
  ::close(fd);
  if (!ok || ::rename(temporary.c_str(), path.c_str()) != 0) {
    const std::string why = std::strerror(errno);
    ::unlink(temporary.c_str());
    throw CommandFailed(path + ": " + why);
  }
}

std::string key_file() {
  const char* path = std::getenv("TAKT_SIGNING_KEYS_FILE");
  if (path == nullptr || *path == '\0')
    throw CommandFailed("TAKT_SIGNING_KEYS_FILE is not set; keys in TAKT_SIGNING_KEYS are rotated where they are kept");
  return path;
}

/// In one piece of memory, which Secret wipes.
Secret joined(std::initializer_list<std::string_view> parts) {
  std::size_t size = 0;
  for (const auto part : parts) size += part.size();
  std::string text;
  text.reserve(size);
  for (const auto part : parts) text += part;
  return Secret(std::move(text));
}

/// A secret alone on a line of standard output, past buffers that nobody would wipe.
void print_secret(const Secret& secret) {
  const Secret line = joined({secret.reveal(), "\n"});
  const auto& bytes = line.reveal();
  if (::write(STDOUT_FILENO, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
    throw CommandFailed(std::string("standard output: ") + std::strerror(errno));
}

/// next becomes current, current becomes retired until `until`, ended keys go, a fresh next is made.
void rotate(const std::string& path, Timestamp until) {
  const Secret text = read_key_file(path);
  static_cast<void>(KeyRing::parse(text.reveal(), path));  // judges it
  const Timestamp now = SystemClock().now();
  std::string_view next, current;
  Secret retired;
  for (const auto line : split(text.reveal(), '\n')) {
    for (const auto part : split(line.substr(0, line.find('#')), ',')) {
      const auto entry = trim(part);
      const auto secret_at = entry.find("whsec_");
      if (secret_at == std::string_view::npos) continue;
      const auto secret = entry.substr(secret_at, entry.find(' ', secret_at) - secret_at);
      if (entry.starts_with("next")) {
        if (next.empty()) next = secret;
      } else if (entry.starts_with("retired")) {
        const auto end = parse_rfc3339(trim(entry.substr(entry.rfind(' ') + 1)));
        if (end && *end > now) retired = joined({retired.reveal(), entry, "\n"});
      } else {
        current = secret;
      }
    }
  }
  if (next.empty()) {
    throw CommandFailed(
        path + ": there is no next key to promote; add one to every service first: \"takt keys generate\", then a line \"next whsec_…\"");
  }
  const auto fresh = generate_signing_secret();
  write_private(path, joined({"current ", next, "\nnext ", fresh.reveal(), "\nretired ", current, " until ", format_rfc3339(until), "\n",
                              retired.reveal()}));
}

/// The one secret that the receiver of a job's webhooks needs, and nothing else, so that it can be piped where it is kept.
void show_webhook(Context& context, const std::string& job, const std::string& role_name) {
  if (!is_name(job)) throw UsageError("\"" + printable(job, 100) + "\" is no job's name");
  const auto role = role_name == "next" ? KeyRole::next : role_name == "retired" ? KeyRole::retired : KeyRole::current;
  const auto secret = context.keys().webhook_secret(job, role, SystemClock().now());
  if (!secret) throw CommandFailed("there is no " + role_name + " key; \"takt keys list\" shows those there are");
  print_secret(*secret);
}

}  // namespace

void add_keys(CLI::App& app, Context& context) {
  auto* keys = app.add_subcommand("keys", "signing keys: list, by fingerprint; generate, rotate, show-webhook");

  auto* generate = keys->add_subcommand("generate", "a fresh key, printed; or a key file");
  auto file = std::make_shared<std::string>();
  generate->add_option("--file", *file, "write a file with a current and a next key, mode 0600, instead");
  generate->callback([file] {
    if (file->empty()) {
      print_secret(generate_signing_secret());
      return;
    }
    if (::access(file->c_str(), F_OK) == 0) throw CommandFailed(*file + " is there already; \"takt keys rotate\" changes it");
    write_private(*file, joined({"current ", generate_signing_secret().reveal(), "\nnext ", generate_signing_secret().reveal(), "\n"}));
    std::cout << "wrote " << *file << "\n";
  });

  auto* rotate_command =
      keys->add_subcommand("rotate", "for every purpose, in TAKT_SIGNING_KEYS_FILE: next becomes current, a fresh next is made");
  auto keep = std::make_shared<std::string>("48h");
  auto yes = std::make_shared<bool>(false);
  rotate_command
      ->add_option("--keep-retired", *keep,
                   "how long the old key is still accepted, and webhooks are signed with it too; longer than worker.max_tick_age")
      ->capture_default_str();
  rotate_command->add_flag("--yes", *yes, "do not ask");
  rotate_command->callback([keep, yes] {
    const auto path = key_file();
    const auto age = parse_age(*keep, "--keep-retired");
    if (!confirm("rotate the keys in " + path + "? Every service must have the next key by now.", *yes))
      throw CommandFailed("nothing done");
    const auto until = std::chrono::floor<std::chrono::seconds>(SystemClock().now() + age);
    rotate(path, until);
    std::cout << "rotated; distribute " << path << " and restart the services one by one\n"
              << "then, before " << format_rfc3339(until)
              << ": each receiver of webhooks takes the secret that \"takt keys show-webhook JOB\" prints,\n"
                 "and each program that publishes ticks the current key\n";
  });

  auto json = std::make_shared<bool>(false);
  add_listing(
      keys, [json](CLI::App* command) { command->add_flag("--json", *json, "as JSON"); },
      [&context, json] {
        Table table({"role", "fingerprint", "until"});
        for (const auto& key : context.keys().keys()) {
          table.add({std::string(to_string(key.role)), key.fingerprint,
                     key.until ? nlohmann::json(shown_time(*key.until)) : nlohmann::json(nullptr)});
        }
        table.print(*json, "no keys");
      });

  auto* webhook =
      keys->add_subcommand("show-webhook", "print the secret with which a receiver verifies a job's webhooks, and nothing else");
  auto job = std::make_shared<std::string>();
  auto role = std::make_shared<std::string>("current");
  webhook->add_option("job", *job, "the job's name; it need not exist yet")->required();
  webhook->add_option("--role", *role, "of which key: current, next or retired")
      ->check(CLI::IsMember({"current", "next", "retired"}))
      ->capture_default_str();
  webhook->callback([&context, job, role] { show_webhook(context, *job, *role); });
}

}  // namespace takt
