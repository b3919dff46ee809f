#pragma once
#include <CLI/CLI.hpp>
#include <string>

namespace takt {

/// Help that is laid out alike by every version of CLI11: defaults as "=default", and no blank line at its end.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override;
  std::string make_option_opts(const CLI::Option* option) const override;
};

}  // namespace takt
