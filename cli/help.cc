#include "cli/help.h"

namespace takt {

std::string HelpFormatter::make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const {
  auto help = CLI::Formatter::make_help(app, std::move(name), mode);
  help.erase(help.find_last_not_of('\n') + 1);
  return help + "\n";
}

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  std::string text;
  if (option->get_type_size() != 0) {
    if (!option->get_type_name().empty()) text += " " + option->get_type_name();
    if (!option->get_default_str().empty()) text += "=" + option->get_default_str();
    if (option->get_expected_max() == CLI::detail::expected_max_vector_size) text += " ...";
    if (option->get_required()) text += " REQUIRED";
  }
  const auto name_all = [&text](const char* what, const auto& options) {
    if (options.empty()) return;
    text += std::string(" ") + what + ":";
    for (const auto* other : options) text += " " + other->get_name();
  };
  name_all("Needs", option->get_needs());
  name_all("Excludes", option->get_excludes());
  return text;
}

}  // namespace takt
