#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

#include "cli/commands.h"
#include "cli/table.h"
#include "core/random.h"
#include "core/text.h"

namespace takt {

namespace {

/// Writes a file with mode 0600 and puts it in place whole.
void write_private(const std::string& path, const Secret& text) {
  const std::string temporary = path + ".new-" + random_id().substr(0, 8);
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) throw CommandFailed(temporary + ": " + std::strerror(errno));
  const auto& bytes = text.reveal();
  const bool ok = ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) && ::fsync(fd) == 0;
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

/// next becomes current, current becomes retired until `until`, ended keys go, a fresh next is made.
void rotate(const std::string& path, Duration keep) {
  const auto ring = KeyRing::from_file(path);  // judges mode and content
  std::ifstream file(path);
  std::ostringstream read;
  read << file.rdbuf();
  const Secret text(read.str());
  const Timestamp now = SystemClock().now();
  std::string next, current, retired;
  for (const auto line : split(text.reveal(), '\n')) {
    for (const auto part : split(line.substr(0, line.find('#')), ',')) {
      const auto entry = trim(part);
      const auto secret_at = entry.find("whsec_");
      if (secret_at == std::string_view::npos) continue;
      const auto secret = std::string(entry.substr(secret_at, entry.find(' ', secret_at) - secret_at));
      if (entry.starts_with("next")) {
        if (next.empty()) next = secret;
      } else if (entry.starts_with("retired")) {
        const auto until = parse_rfc3339(trim(entry.substr(entry.rfind(' ') + 1)));
        if (until && *until > now) retired += std::string(entry) + "\n";
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
  write_private(path, Secret("current " + next + "\nnext " + fresh.reveal() + "\nretired " + current + " until " +
                             format_rfc3339(std::chrono::floor<std::chrono::seconds>(now + keep)) + "\n" + retired));
  wipe(next);
  wipe(current);
}

}  // namespace

void add_keys(CLI::App& app, Context& context) {
  auto* keys = app.add_subcommand("keys", "signing keys: generate, rotate, list");
  keys->require_subcommand(1);

  auto* generate = keys->add_subcommand("generate", "a fresh key, printed; or a key file");
  auto file = std::make_shared<std::string>();
  generate->add_option("--file", *file, "write a file with a current and a next key, mode 0600, instead");
  generate->callback([file] {
    if (file->empty()) {
      std::cout << generate_signing_secret().reveal() << "\n";
      return;
    }
    if (::access(file->c_str(), F_OK) == 0) throw CommandFailed(*file + " is there already; \"takt keys rotate\" changes it");
    write_private(*file, Secret("current " + generate_signing_secret().reveal() + "\nnext " + generate_signing_secret().reveal() + "\n"));
    std::cout << "wrote " << *file << "\n";
  });

  auto* rotate_command = keys->add_subcommand("rotate", "in TAKT_SIGNING_KEYS_FILE: next becomes current, a fresh next is made");
  auto keep = std::make_shared<std::string>("48h");
  auto yes = std::make_shared<bool>(false);
  rotate_command->add_option("--keep-retired", *keep, "how long the old key is still accepted; longer than worker.max_tick_age")
      ->capture_default_str();
  rotate_command->add_flag("--yes", *yes, "do not ask");
  rotate_command->callback([keep, yes] {
    const auto path = key_file();
    const auto age = parse_age(*keep, "--keep-retired");
    if (!confirm("rotate the keys in " + path + "? Every service must have the next key by now.", *yes))
      throw CommandFailed("nothing done");
    rotate(path, age);
    std::cout << "rotated; distribute " << path << " and restart the services one by one\n";
  });

  auto* list = keys->add_subcommand("list", "the keys in use, by fingerprint");
  auto json = std::make_shared<bool>(false);
  list->add_flag("--json", *json, "as JSON");
  list->callback([&context, json] {
    Table table({"role", "fingerprint", "until"});
    for (const auto& key : context.keys().keys()) {
      table.add({std::string(to_string(key.role)), key.fingerprint,
                 key.until ? nlohmann::json(format_rfc3339(*key.until)) : nlohmann::json(nullptr)});
    }
    table.print(*json, "no keys");
  });
}

}  // namespace takt
