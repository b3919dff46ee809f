#include "core/db/query.h"

#include <gtest/gtest.h>

#include "tests/support/fixture.h"

namespace takt {
namespace {

using namespace std::chrono_literals;

struct Asked {
  std::int64_t number = 0;
  std::string text;
  std::optional<std::string> absent;
  std::vector<std::string> texts;
  Duration time{};
  static constexpr auto fields() { return std::tuple(&Asked::number, &Asked::text, &Asked::absent, &Asked::texts, &Asked::time); }
};
struct Answered {
  std::int64_t number = 0;
  std::string text;
  std::optional<std::string> absent;
  bool flag = false;
  double real = 0;
  Duration time{};
  Timestamp at;
  int small = 0;
  std::vector<std::string> list, none;
  static constexpr auto fields() {
    return std::tuple(Field("number", &Answered::number), Field("text", &Answered::text), Field("absent", &Answered::absent),
                      Field("flag", &Answered::flag), Field("real", &Answered::real), Field("time", &Answered::time),
                      Field("at", &Answered::at), Field("small", &Answered::small), Field("list", &Answered::list),
                      Field("none", &Answered::none));
  }
};

struct QueryTest : testing::Test {
  TestDatabase database{false};

  /// What is said of a statement whose rows are read as the number and the text "number" and "text".
  std::string refusal(const char* sql) {
    struct Row {
      std::int64_t number = 0;
      std::string text;
      static constexpr auto fields() { return std::tuple(Field("number", &Row::number), Field("text", &Row::text)); }
    };
    const Query<NoRequest, Row> statement{sql, sql};
    try {
      query(*database, statement);
    } catch (const SchemaChanged& error) {
      EXPECT_EQ(error.sqlstate(), "42804");
      EXPECT_FALSE(database->usable()) << "/readyz says so";
      return error.what();
    }
    return "";
  }
};

TEST_F(QueryTest, GivesEachMemberItsPlaceAndReadsEachColumnByItsName) {
  constexpr Query<Asked, Answered> kEcho{"echo", R"sql(
    SELECT $1::bigint AS number, $2 || array_to_string($4::text[], '+') AS text, $3::text AS absent, true AS flag, 0.5::float8 AS real,
           $5::bigint AS time, 1500000::bigint AS at, 7::smallint AS small, to_json($4::text[])::text AS list, NULL::text AS none
      FROM generate_series(1, 2))sql"};
  const auto rows = query(*database, kEcho, {-9'007'199'254'740'993, "a,b", std::nullopt, {"c", "d"}, 1500ms});
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[1].number, -9'007'199'254'740'993);
  EXPECT_EQ(rows[1].text, "a,bc+d");
  EXPECT_EQ(rows[1].absent, std::nullopt);
  EXPECT_TRUE(rows[1].flag);
  EXPECT_EQ(rows[1].real, 0.5);
  EXPECT_EQ(rows[1].time, 1500ms);
  EXPECT_EQ(rows[1].at, Timestamp() + 1500ms);
  EXPECT_EQ(rows[1].list, (std::vector<std::string>{"c", "d"}));
  EXPECT_TRUE(rows[1].none.empty());
  EXPECT_EQ(rows[1].small, 7);
  EXPECT_EQ(query_retrying(*database, kEcho, {1, "", "there", {}, 0ms}).at(0).absent, "there");
  EXPECT_EQ(query_divisible(*database, kEcho, {1, "x", "", {}, 0ms}).at(0).text, "x");
}

TEST_F(QueryTest, AColumnThatIsAnotherIsAnErrorAndNotAWrongValue) {
  EXPECT_EQ(refusal("SELECT 1 AS number, ''::text AS text"), "") << "an integer of any width";
  EXPECT_EQ(refusal("SELECT 1 AS number, ''::varchar AS text WHERE false"), "");
  const char* moved = "SELECT ''::text AS text, 1 AS number";
  EXPECT_EQ(refusal(moved), std::string("database: its schema is not this version's (") + moved +
                                "): its column 1, \"text\", is not the integer \"number\"");
  EXPECT_NE(refusal("SELECT 1 AS number, 2 AS text").find("its column 2, \"text\", is not the text \"text\""), std::string::npos);
  EXPECT_NE(refusal("SELECT 1.5 AS number, ''::text AS text").find("is not the integer \"number\""), std::string::npos);
  EXPECT_NE(refusal("SELECT 1 AS number").find("its rows have 1 columns, and not 2"), std::string::npos);
  EXPECT_NE(refusal("SELECT 1 AS number, ''::text AS text, 1 AS more WHERE false").find("3 columns"), std::string::npos)
      << "whether there are rows or not";
}

TEST_F(QueryTest, WhatReturnsNothingTellsHowManyRowsItWrote) {
  database->exec(std::string("CREATE TABLE numbers AS SELECT n FROM generate_series(1, 5) n"));
  struct UpTo {
    int most = 0;
    static constexpr auto fields() { return std::tuple(&UpTo::most); }
  };
  constexpr Query<UpTo, NoRow> kDelete{"delete_numbers", "DELETE FROM numbers WHERE n <= $1"};
  EXPECT_EQ(execute(*database, kDelete, {3}), 3U);
  EXPECT_EQ(execute_retrying(*database, kDelete, {4}), 1U);
}

}  // namespace
}  // namespace takt
