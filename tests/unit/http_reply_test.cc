#include "worker/handlers/http_reply.h"

#include <gtest/gtest.h>

namespace takt {
namespace {

using namespace std::chrono_literals;

const Timestamp kNow = *parse_rfc3339("2026-11-21T10:00:00Z");

HttpResponse answer(int status, const std::string& body = "", const std::string& type = "application/json") {
  HttpResponse response;
  response.status = status;
  response.body = body;
  response.content_type = type;
  return response;
}
HandlerResult judge(const HttpResponse& response) { return judge_reply(response, "POST", kNow, false); }

TEST(HttpReply, ClassifiesStatuses) {
  EXPECT_EQ(judge(answer(200)).item_class, ItemClass::done);
  EXPECT_EQ(judge(answer(204)).item_class, ItemClass::done);
  EXPECT_EQ(judge(answer(302)).reason, "http_302");
  EXPECT_EQ(judge(answer(302)).item_class, ItemClass::error);
  EXPECT_EQ(judge(answer(404)).item_class, ItemClass::error);
  EXPECT_EQ(judge(answer(500)).item_class, ItemClass::error);
  EXPECT_EQ(judge(answer(410)).item_class, ItemClass::error);
  const auto wrong_method = judge(answer(405));
  EXPECT_EQ(wrong_method.item_class, ItemClass::blocked);
  EXPECT_EQ(wrong_method.error, "this endpoint does not accept POST");
  auto refused = answer(489);
  EXPECT_EQ(judge(refused).item_class, ItemClass::error);
  refused.non_retryable = true;
  EXPECT_EQ(judge(refused).item_class, ItemClass::fatal);
}

TEST(HttpReply, ReadsWhatASuccessSays) {
  EXPECT_EQ(judge(answer(200, R"({"result":"noop"})")).item_class, ItemClass::noop);
  EXPECT_EQ(judge(answer(200, R"({"result":"blocked"})")).item_class, ItemClass::blocked);
  const auto skipped = judge(answer(200, R"({"result":"skipped","retryAfter":"5m"})"));
  EXPECT_EQ(skipped.item_class, ItemClass::skipped);
  EXPECT_EQ(skipped.retry_after, 5min);
  const auto batch = judge(answer(200, R"({"processed":8,"failed":1,"skipped":0,"queueDepth":12})"));
  EXPECT_EQ(batch.item_class, ItemClass::done);
  EXPECT_EQ(batch.processed, 8);
  EXPECT_EQ(batch.queue_depth, 12);
  for (const char* body : {"not json", "[]", "5", R"({"result":5})", R"({"result":"unheard of"})", R"({"processed":"many"})"}) {
    EXPECT_EQ(judge(answer(200, body)).item_class, ItemClass::done) << body;
  }
  EXPECT_EQ(judge(answer(200, R"({"result":"error"})", "text/html")).item_class, ItemClass::done);
}

TEST(HttpReply, HonoursRetryAfterOnlyWhereItMeansSomething) {
  for (const int status : {429, 503}) {
    auto busy = answer(status);
    busy.retry_after = "120";
    EXPECT_EQ(judge(busy).retry_after, 120s) << status;
  }
  auto broken = answer(500);
  broken.retry_after = "120";
  EXPECT_FALSE(judge(broken).retry_after);
}

TEST(RetryAfter, ReadsSecondsAndDatesAndNothingElse) {
  EXPECT_EQ(parse_retry_after(" 5 ", kNow), 5s);
  EXPECT_EQ(parse_retry_after("Sat, 21 Nov 2026 10:00:30 GMT", kNow), 30s);
  EXPECT_EQ(parse_retry_after("Sat, 21 Nov 2026 09:00:00 GMT", kNow), 0s);
  EXPECT_LE(*parse_retry_after("99999999999999999999", kNow), 8784h);
  for (const char* text : {"", "soon", "-5"}) EXPECT_FALSE(parse_retry_after(text, kNow)) << text;
}

TEST(HttpReply, TellsFaultsApart) {
  for (const auto fault :
       {HttpFault::timeout, HttpFault::resolve, HttpFault::connect, HttpFault::tls, HttpFault::too_large, HttpFault::protocol}) {
    HttpResponse response;
    response.fault = fault;
    const auto judged = judge(response);
    EXPECT_EQ(judged.item_class, ItemClass::error);
    EXPECT_EQ(judged.reason, to_string(fault));
  }
  HttpResponse cancelled;
  cancelled.fault = HttpFault::cancelled;
  EXPECT_EQ(judge(cancelled).item_class, ItemClass::interrupted);
}

}  // namespace
}  // namespace takt
