#include "cli/table.h"

#include <gtest/gtest.h>

namespace takt {
namespace {

Table table() {
  Table table({"run", {"trigger", 2}, {"worker", 1}, "error"});
  table.add({7, "schedule", "6908f4245f95@web-1", "the endpoint answered 500"});
  table.add({12, "due", nullptr, "größer als erlaubt"});
  return table;
}

TEST(Table, IsAsWideAsItsTextsWhereThereIsNoTerminal) {
  EXPECT_EQ(table().text(0, false),
            "run  trigger   worker              error\n"
            "7    schedule  6908f4245f95@web-1  the endpoint answered 500\n"
            "12   due       -                   größer als erlaubt\n");
}

TEST(Table, LeavesOutTheColumnsOfTheHighestRankFirst) {
  EXPECT_EQ(table().text(52, false),
            "run  worker              error\n"
            "7    6908f4245f95@web-1  the endpoint answered 500\n"
            "12   -                   größer als erlaubt\n"
            "(1 column more with --wide)\n");
  EXPECT_EQ(table().text(30, false),
            "run  error\n"
            "7    the endpoint answered 500\n"
            "12   größer als erlaubt\n"
            "(2 columns more with --wide)\n");
}

TEST(Table, CutsTheLongestTextOfWhatMustStay) {
  EXPECT_EQ(table().text(22, false),
            "run  error\n"
            "7    the endpoint ans…\n"
            "12   größer als erlau…\n"
            "(2 columns more with --wide)\n");
}

TEST(Table, LeavesOutWhatSaysNothingBeforeWhatSaysSomething) {
  Table silent({"job", {"dead", 1}, {"queue", 5}});
  silent.add({"billing.renewals", 0, "default"});
  EXPECT_EQ(silent.text(26, false),
            "job               queue\n"
            "billing.renewals  default\n"
            "(1 column more with --wide)\n");
}

TEST(Table, PaintsStatesAndCountsNoColourAsWidth) {
  Table states({"job", "state", "due"});
  states.add({"mail", "held", 1});
  EXPECT_EQ(states.text(0, true), "\x1b[1mjob\x1b[0m   \x1b[1mstate\x1b[0m  \x1b[1mdue\x1b[0m\nmail  \x1b[33mheld\x1b[0m   1\n");
}

TEST(Table, OneWithoutRowsIsItsHeads) { EXPECT_EQ(Table({"a", "b"}).text(80, false), "a  b\n"); }

}  // namespace
}  // namespace takt
