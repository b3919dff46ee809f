#include <charconv>

#include "core/text/text.h"
#include "core/time/cron.h"

namespace takt {

namespace {

struct Field {
  std::string_view name;
  unsigned low;
  unsigned high;
};
constexpr Field kSecond{"second", 0, 59};
constexpr Field kMinute{"minute", 0, 59};
constexpr Field kHour{"hour", 0, 23};
constexpr Field kDayOfMonth{"day of month", 1, 31};
constexpr Field kMonth{"month", 1, 12};
constexpr Field kDayOfWeek{"day of week", 0, 7};

constexpr std::array<std::string_view, 12> kMonthNames{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"};
constexpr std::array<std::string_view, 7> kDayNames{"sun", "mon", "tue", "wed", "thu", "fri", "sat"};

struct Macro {
  std::string_view name;
  std::string_view fields;
};
constexpr std::array<Macro, 7> kMacros{{{"@yearly", "0 0 1 1 *"},
                                        {"@annually", "0 0 1 1 *"},
                                        {"@monthly", "0 0 1 * *"},
                                        {"@weekly", "0 0 * * 0"},
                                        {"@daily", "0 0 * * *"},
                                        {"@midnight", "0 0 * * *"},
                                        {"@hourly", "0 * * * *"}}};
constexpr std::int64_t kLongestEvery_s = 366LL * 86400;

}  // namespace

/// Recursive descent over one expression; throws CronError, which Cron::parse() catches.
class CronParser {
 public:
  CronParser(std::string_view text, Cron& cron) : text_(text), cron_(cron) {}

  void parse() {
    skip_spaces();
    parse_zone();
    if (at_ == text_.size()) fail("the expression is empty; five fields (minute hour day month weekday) or six are needed");
    if (peek() == '@') return parse_macro();
    std::vector<std::pair<std::size_t, std::string_view>> fields;
    while (at_ < text_.size()) {
      const auto end = std::min(text_.find_first_of(" \t", at_), text_.size());
      fields.emplace_back(at_, text_.substr(at_, end - at_));
      at_ = end;
      skip_spaces();
    }
    if (fields.size() != 5 && fields.size() != 6) {
      at_ = fields.size() > 6 ? fields[6].first : text_.size();
      fail(std::to_string(fields.size()) + " fields; five (minute hour day month weekday) or six with seconds first are needed");
    }
    parse_fields(fields);
  }

 private:
  [[noreturn]] void fail(std::string message) const { throw CronError{at_, std::move(message)}; }
  [[nodiscard]] char peek() const { return at_ < end_ ? text_[at_] : '\0'; }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
    end_ = text_.size();
  }
  bool accept(char c) {
    const char found = peek();
    const bool letter = c >= 'A' && c <= 'Z';
    if (found != c && !(letter && found == c + 32)) return false;
    ++at_;
    return true;
  }

  void parse_zone() {
    const auto rest = text_.substr(at_);
    const std::size_t prefix = rest.starts_with("CRON_TZ=") ? 8 : rest.starts_with("TZ=") ? 3 : 0;
    if (prefix == 0) return;
    at_ += prefix;
    const auto end = std::min(text_.find_first_of(" \t", at_), text_.size());
    const std::string zone(text_.substr(at_, end - at_));
    if (!is_time_zone(zone)) fail("\"" + zone + "\" is not a time zone; use a name such as Europe/Madrid or UTC");
    cron_.zone_ = zone;
    at_ = end;
    skip_spaces();
  }

  void parse_macro() {
    const auto rest = text_.substr(at_);
    const auto word = to_lower(rest.substr(0, rest.find_first_of(" \t")));
    const auto argument = trim(rest.substr(word.size()));
    const auto argument_at = argument.empty() ? text_.size() : static_cast<std::size_t>(argument.data() - text_.data());
    if (word == "@every") {
      at_ = argument_at;
      const auto period = parse_duration(argument);
      if (!period || period->count() < 1000 || period->count() % 1000 != 0 || period->count() / 1000 > kLongestEvery_s) {
        fail("@every needs a duration of whole seconds from 1s to 366d, such as 90s or 1h30m");
      }
      cron_.every_s_ = period->count() / 1000;
      cron_.interval_ = true;
      return;
    }
    if (word == "@at") {
      at_ = argument_at;
      const auto time = parse_rfc3339(argument);
      if (!time) fail("@at needs a time such as 2026-11-21T10:00:00Z");
      cron_.at_ = *time;
      return;
    }
    for (const auto& macro : kMacros) {
      if (macro.name != word) continue;
      if (!argument.empty()) {
        at_ = argument_at;
        fail(std::string(word) + " takes no argument");
      }
      CronParser(macro.fields, cron_).parse();
      return;
    }
    fail("\"" + std::string(word) + "\" is unknown; known are @yearly @monthly @weekly @daily @hourly @every @at");
  }

  void parse_fields(const std::vector<std::pair<std::size_t, std::string_view>>& fields) {
    const auto enter = [&](std::size_t i) {
      at_ = fields[i].first;
      end_ = at_ + fields[i].second.size();
      return peek() == '*';
    };
    std::size_t i = 0;
    if (fields.size() == 6) {
      cron_.interval_ = enter(i++);
      parse_list(kSecond, cron_.seconds_);
    } else {
      cron_.seconds_.set(0);
    }
    cron_.interval_ = enter(i++) || cron_.interval_;
    parse_list(kMinute, cron_.minutes_);
    cron_.interval_ = enter(i++) || cron_.interval_;
    parse_list(kHour, cron_.hours_);
    cron_.day_of_month_.star = enter(i++) || peek() == '?';
    parse_day_of_month();
    enter(i++);
    parse_list(kMonth, cron_.months_);
    cron_.day_of_week_.star = enter(i) || peek() == '?';
    parse_day_of_week();
  }

  template <std::size_t N>
  void parse_list(const Field& field, std::bitset<N>& bits) {
    do parse_range(field, bits);
    while (accept(','));
    expect_end(field);
  }

  void expect_end(const Field& field) {
    if (at_ != end_) fail("unexpected \"" + std::string(1, text_[at_]) + "\" in the " + std::string(field.name) + " field");
  }

  /// `*`, `a`, `a-b`, each with an optional `/n`; `a/n` runs from a to the field's end.
  template <std::size_t N>
  void parse_range(const Field& field, std::bitset<N>& bits) {
    unsigned low = field.low;
    unsigned high = field.high;
    const auto start = at_;
    bool open = false;
    if (accept('*')) {
      open = true;
      if (&field == &kDayOfWeek) high = 6;
    } else {
      low = high = parse_value(field);
      if (accept('-')) {
        high = parse_value(field);
        if (&field == &kDayOfWeek && high == 0 && low > 0) high = 7;
        if (high < low) {
          at_ = start;
          fail("the range " + std::to_string(low) + "-" + std::to_string(high) + " runs backwards; write it as two ranges");
        }
        open = true;
      }
    }
    unsigned step = 1;
    if (accept('/')) {
      const auto step_at = at_;
      step = parse_number(field);
      if (step == 0 || step > field.high) {
        at_ = step_at;
        fail("the step must be from 1 to " + std::to_string(field.high) + " in the " + std::string(field.name) + " field");
      }
      if (!open) high = &field == &kDayOfWeek ? 6 : field.high;
    }
    for (unsigned value = low; value <= high; value += step) bits.set(&field == &kDayOfWeek ? value % 7 : value);
  }

  unsigned parse_number(const Field& field) {
    unsigned value = 0;
    const auto* first = text_.data() + at_;
    const auto [last, error] = std::from_chars(first, text_.data() + end_, value);
    if (error == std::errc::result_out_of_range) value = ~0U;
    if (error == std::errc::invalid_argument) {
      fail(at_ >= end_ ? "a value is missing in the " + std::string(field.name) + " field"
                       : "\"" + printable(text_.substr(at_, end_ - at_), 40) + "\" is not a value of the " + std::string(field.name) +
                             " field; give " + std::to_string(field.low) + "-" + std::to_string(field.high) +
                             (&field == &kMonth       ? " or JAN-DEC"
                              : &field == &kDayOfWeek ? " or SUN-SAT"
                                                      : ""));
    }
    at_ += static_cast<std::size_t>(last - first);
    return value;
  }

  unsigned parse_value(const Field& field) {
    const auto start = at_;
    if (const auto named = parse_name(field)) return *named;
    const unsigned value = parse_number(field);
    if (value < field.low || value > field.high) {
      at_ = start;
      fail("the " + std::string(field.name) + " must be from " + std::to_string(field.low) + " to " + std::to_string(field.high));
    }
    return value;
  }

  std::optional<unsigned> parse_name(const Field& field) {
    const auto word = to_lower(text_.substr(at_, std::min<std::size_t>(3, end_ - at_)));
    const auto find = [&](const auto& names, unsigned base) -> std::optional<unsigned> {
      for (std::size_t i = 0; i < names.size(); ++i) {
        if (names[i] == word) {
          at_ += 3;
          return static_cast<unsigned>(i) + base;
        }
      }
      return std::nullopt;
    };
    if (&field == &kMonth) return find(kMonthNames, 1);
    if (&field == &kDayOfWeek) return find(kDayNames, 0);
    return std::nullopt;
  }

  void parse_day_of_month() {
    auto& days = cron_.day_of_month_;
    do {
      if (accept('?')) {
        days.days.set();
      } else if (accept('L')) {
        if (accept('W')) {
          days.last_weekday = true;
        } else if (accept('-')) {
          const auto start = at_;
          const unsigned n = parse_number(kDayOfMonth);
          if (n < 1 || n > 30) {
            at_ = start;
            fail("L-n needs n from 1 to 30");
          }
          days.before_last.set(n);
        } else {
          days.before_last.set(0);
        }
      } else {
        const auto start = at_;
        if (peek() >= '0' && peek() <= '9') {
          const unsigned day = parse_value(kDayOfMonth);
          if (accept('W')) {
            days.nearest_weekday.set(day);
            continue;
          }
          at_ = start;
        }
        parse_range(kDayOfMonth, days.days);
      }
    } while (accept(','));
    expect_end(kDayOfMonth);
  }

  void parse_day_of_week() {
    auto& days = cron_.day_of_week_;
    do {
      if (accept('?')) {
        days.days.set();
        continue;
      }
      const auto start = at_;
      if (peek() != '*') {
        const unsigned day = parse_value(kDayOfWeek) % 7;
        if (accept('L')) {
          days.last.set(day);
          continue;
        }
        if (accept('#')) {
          const auto nth_at = at_;
          const unsigned nth = parse_number(kDayOfWeek);
          if (nth < 1 || nth > 5) {
            at_ = nth_at;
            fail("#n needs n from 1 to 5");
          }
          days.nth[nth].set(day);
          continue;
        }
        at_ = start;
      }
      parse_range(kDayOfWeek, days.days);
    } while (accept(','));
    expect_end(kDayOfWeek);
  }

  std::string_view text_;
  Cron& cron_;
  std::size_t at_ = 0;
  std::size_t end_ = text_.size();
};

std::variant<Cron, CronError> Cron::parse(std::string_view expression, const std::string& zone) {
  Cron cron;
  if (!is_time_zone(zone)) {
    return CronError{0, "\"" + printable(zone, 60) + "\" is not a time zone; use a name such as Europe/Madrid or UTC"};
  }
  if (expression.size() > 512) return CronError{512, "the expression is longer than 512 characters"};
  cron.zone_ = zone;
  try {
    CronParser(expression, cron).parse();
  } catch (CronError& error) {
    return std::move(error);
  }
  return cron;
}

}  // namespace takt
