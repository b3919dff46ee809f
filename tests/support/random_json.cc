#include "tests/support/random_json.h"

#include <iterator>

namespace takt {

namespace {

constexpr const char* kScalars[] = {"null",
                                    "true",
                                    "false",
                                    "{}",
                                    "[]",
                                    "0",
                                    "-0",
                                    "1.10",
                                    "0.1000",
                                    "9007199254740993",
                                    "1234567890123456789",
                                    "9223372036854775807",
                                    "-9223372036854775808",
                                    "18446744073709551616",
                                    "123456789012345678901234567890.123456789012345678901234567890",
                                    "1E400",
                                    "1e-400",
                                    "5e-324",
                                    R"("")",
                                    R"("\\u0000")",
                                    R"("\u0001\u001f\t\n\"\\/")",
                                    R"("\ud83d\ude00 ä€😀")",
                                    R"("\u2028\u202e")",
                                    R"("{url} %s ${1}")"};

int roll(std::mt19937& dice, int sides) { return std::uniform_int_distribution<int>(0, sides - 1)(dice); }

std::string digits(std::mt19937& dice) {
  std::string text(1, static_cast<char>('1' + roll(dice, 9)));
  for (int left = roll(dice, 40); left > 0; --left) text += static_cast<char>('0' + roll(dice, 10));
  return text;
}

std::string nested(std::mt19937& dice) {
  const auto levels = static_cast<std::size_t>(1 + roll(dice, 90));
  return std::string(levels, '[') + std::string(levels, ']');
}

}  // namespace

std::string random_json(std::mt19937& dice, int depth) {
  switch (roll(dice, depth > 0 ? 9 : 6)) {
    case 0: return digits(dice);
    case 1: return "-" + digits(dice) + "." + digits(dice);
    case 2: return roll(dice, 4) == 0 ? nested(dice) : digits(dice);
    case 6:
    case 7:
    case 8: break;
    default: return kScalars[roll(dice, std::size(kScalars))];
  }
  const bool object = roll(dice, 2) == 0;
  std::string text(1, object ? '{' : '[');
  for (int left = roll(dice, 4); left > 0; --left) {
    if (object) text += std::string(1, '"') + static_cast<char>('a' + roll(dice, 3)) + "\": ";
    text += random_json(dice, depth - 1);
    if (left > 1) text += ", ";
  }
  return text + (object ? '}' : ']');
}

}  // namespace takt
