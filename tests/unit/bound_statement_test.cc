#include "core/db/bound_statement.h"

#include <gtest/gtest.h>

namespace takt {
namespace {

TEST(BoundStatement, NumbersItsParametersWithoutGaps) {
  const auto bound = bind_statement("SELECT f($3, $1), $3, $1['a'] FETCH FIRST $4 ROWS ONLY");
  EXPECT_EQ(bound.sql, "SELECT f(($1::bigint), ($2::jsonb)), ($1::bigint), ($2::jsonb)['a'] FETCH FIRST ($3::integer) ROWS ONLY");
  EXPECT_EQ(bound.parameters, (std::vector<int>{3, 1, 4}));
  EXPECT_FALSE(bound.unknown);
  EXPECT_TRUE(bind_statement("SELECT 1").parameters.empty());
}

TEST(BoundStatement, Finding36_LeavesAloneWhatPostgreSqlDoesNotTakeForAParameter) {
  for (const char* text : {
           "SELECT '$1', 'it''s $1', \"$2\", \"a\"\"$2\"",
           "SELECT 1 -- $4",
           "SELECT /* $1 */ 1",
           "SELECT /* /* $1 */ $2 */ 1",
           "SELECT /*/ $1 */ 1",
           "SELECT /** $1 **/ 1",
           "SELECT $$ $2 $$",
           "SELECT $$ it's $1 $$",
           "SELECT $tag$ $1 $$ $2 $tag $tag$",
           "SELECT $_t1$ $1 $_t1$",
           "SELECT $\xc3\xa4$ $1 $\xc3\xa4$",
           R"(SELECT E'it\'s $1')",
           R"(SELECT e'\\\' $1 '' $2')",
           "SELECT E'a'\n -- and\n  'b\\' $1'",
           R"(SELECT U&'\0041 $1', U&"$2", B'$3', N'$1')",
           "SELECT col$1 FROM t$2",
           "SELECT \xc3\xa4$1",
           "SELECT $tag",
           "SELECT '$1",
           "SELECT \"$1",
           "SELECT /* $1",
           "SELECT $$ $1",
           "SELECT E'$1\\",
           "SELECT a -- $1\r",
           "",
           "$",
       }) {
    const auto bound = bind_statement(text);
    EXPECT_EQ(bound.sql, text);
    EXPECT_TRUE(bound.parameters.empty()) << text;
    EXPECT_FALSE(bound.unknown) << text;
  }
}

TEST(BoundStatement, Finding36_BindsWhatFollowsOnWhatIsLeftAlone) {
  for (const auto& [text, sql] : std::vector<std::pair<const char*, const char*>>{
           {"/* a */$1", "/* a */($1::jsonb)"},
           {"/* /* */ */ $1", "/* /* */ */ ($1::jsonb)"},
           {"$$a$$ || $2", "$$a$$ || ($1::text)"},
           {"$a$ $$ $a$ || $2", "$a$ $$ $a$ || ($1::text)"},
           {R"(E'\\' || $2)", R"(E'\\' || ($1::text))"},
           {R"('\' || $2)", R"('\' || ($1::text))"},
           {R"(typE'\' || $2)", R"(typE'\' || ($1::text))"},
           {R"(U&'\' || $2)", R"(U&'\' || ($1::text))"},
           {R"(E'a' '\' || $2)", R"(E'a' '\' || ($1::text))"},
           {"-- it's\n$1", "-- it's\n($1::jsonb)"},
           {"-- it's\r$1", "-- it's\r($1::jsonb)"},
           {"a<$4", "a<($1::integer)"},
           {"a- $4-$4", "a- ($1::integer)-($1::integer)"},
           {"a/$4*$3", "a/($1::integer)*($2::bigint)"},
           {"$1::jsonb->>'a'", "($1::jsonb)::jsonb->>'a'"},
           {"$1$2", "($1::jsonb)($2::text)"},
           {"$1$a$ $2 $a$", "($1::jsonb)$a$ $2 $a$"},
           {"1+$01", "1+($1::jsonb)"},
           {"f($1,$2)", "f(($1::jsonb),($2::text))"},
       }) {
    EXPECT_EQ(bind_statement(text).sql, sql);
  }
}

TEST(BoundStatement, Finding36_SaysWhichParameterThereIsNot) {
  for (const auto& [text, unknown] :
       std::vector<std::pair<const char*, const char*>>{{"SELECT $10", "$10"},
                                                        {"SELECT $1, $0, $9", "$0"},
                                                        {"SELECT $5", "$5"},
                                                        {"SELECT $99999999999999999999999", "$99999999999999999999999"}}) {
    const auto bound = bind_statement(text);
    ASSERT_TRUE(bound.unknown) << text;
    EXPECT_EQ(*bound.unknown, unknown);
  }
}

}  // namespace
}  // namespace takt
