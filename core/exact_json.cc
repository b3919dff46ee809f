#include "core/exact_json.h"

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/text.h"

namespace takt {

namespace {

constexpr std::size_t kMaxNumberCharacters = 1000;

/// Writes what nlohmann's parser hears, and counts what PostgreSQL would print. After a fault it hears no more.
class ExactWriter : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit ExactWriter(std::size_t most) : most_(most) {}

  bool null() override { return token("null", 4); }
  bool boolean(bool value) override { return value ? token("true", 4) : token("false", 5); }
  bool number_integer(number_integer_t value) override { return number(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { return number(std::to_string(value)); }
  bool number_float(number_float_t /*value*/, const string_t& written) override { return number(written); }
  bool string(string_t& value) override { return quoted(value, false); }
  bool binary(binary_t& /*value*/) override { return refuse(JsonFault::malformed); }
  bool start_object(std::size_t /*elements*/) override { return open('{'); }
  bool start_array(std::size_t /*elements*/) override { return open('['); }
  bool end_object() override { return close('}'); }
  bool end_array() override { return close(']'); }
  bool key(string_t& value) override { return quoted(value, true); }
  bool parse_error(std::size_t /*position*/, const std::string& /*token*/, const nlohmann::detail::exception& fault) override {
    return refuse(fault.id == kNumberOverflow ? JsonFault::limit : JsonFault::malformed);
  }

  [[nodiscard]] int depth() const { return depth_; }
  [[nodiscard]] std::optional<JsonFault> fault() const { return fault_; }
  std::string take() { return std::move(text_); }

 protected:
  bool refuse(JsonFault fault) {
    if (!fault_) fault_ = fault;
    return false;
  }

 private:
  static constexpr int kNumberOverflow = 406;  // nlohmann's out_of_range for a number beyond a double

  void separate() {
    if (!text_.empty() && text_.back() != '{' && text_.back() != '[' && text_.back() != ':') {
      text_ += ',';
      printed_ += 2;  // PostgreSQL puts a space behind a comma
    }
  }
  bool token(std::string_view written, std::size_t printed) {
    separate();
    text_ += written;
    return count(printed);
  }
  bool count(std::size_t bytes) {
    printed_ += bytes;
    return printed_ <= most_ || refuse(JsonFault::limit);
  }
  bool number(const std::string& written) {
    if (written.size() > kMaxNumberCharacters) return refuse(JsonFault::limit);
    const auto exponent = written.find_first_of("eE");
    const long shift = exponent == std::string::npos ? 0 : std::strtol(written.c_str() + exponent + 1, nullptr, 10);
    if (std::labs(shift) > static_cast<long>(kMaxNumberCharacters)) return refuse(JsonFault::limit);
    return token(written, written.size() + static_cast<std::size_t>(std::labs(shift)));
  }
  bool quoted(const std::string& value, bool is_key) {
    if (value.find('\0') != std::string::npos) return refuse(JsonFault::limit);
    separate();
    const auto before = text_.size();
    text_ += nlohmann::json(value).dump();  // the parser has judged its UTF-8
    if (is_key) text_ += ':';
    return count(text_.size() - before + (is_key ? 1 : 0));  // and behind a colon
  }
  bool open(char bracket) {
    separate();
    text_ += bracket;
    return (++depth_ <= kMaxJsonDepth || refuse(JsonFault::limit)) && count(1);
  }
  bool close(char bracket) {
    text_ += bracket;
    --depth_;
    return count(1);
  }

  const std::size_t most_;
  std::string text_;
  std::size_t printed_ = 0;
  int depth_ = 0;
  std::optional<JsonFault> fault_;
};

/// Writes a tick's document through, but for each items[].payload, which goes to a writer of its own.
class TickWriter final : public ExactWriter {
 public:
  explicit TickWriter(std::size_t most_payload) : ExactWriter(kUnbounded), most_payload_(most_payload) {}

  bool null() override {
    return scalar([](ExactWriter& to) { return to.null(); }, [this] { return ExactWriter::null(); });
  }
  bool boolean(bool value) override {
    return scalar([&](ExactWriter& to) { return to.boolean(value); }, [&] { return ExactWriter::boolean(value); });
  }
  bool number_integer(number_integer_t value) override {
    return scalar([&](ExactWriter& to) { return to.number_integer(value); }, [&] { return ExactWriter::number_integer(value); });
  }
  bool number_unsigned(number_unsigned_t value) override {
    return scalar([&](ExactWriter& to) { return to.number_unsigned(value); }, [&] { return ExactWriter::number_unsigned(value); });
  }
  bool number_float(number_float_t value, const string_t& written) override {
    return scalar([&](ExactWriter& to) { return to.number_float(value, written); },
                  [&] { return ExactWriter::number_float(value, written); });
  }
  bool string(string_t& value) override {
    return scalar([&](ExactWriter& to) { return to.string(value); }, [&] { return ExactWriter::string(value); });
  }
  bool start_object(std::size_t elements) override {
    return payload_ ? payload_->start_object(elements) || refused() : ExactWriter::start_object(elements);
  }
  bool start_array(std::size_t elements) override {
    if (payload_) return payload_->start_array(elements) || refused();
    in_items_ = depth() == 1 ? last_key_ == "items" : in_items_;
    return ExactWriter::start_array(elements);
  }
  bool end_object() override { return payload_ ? payload_->end_object() && ended() : ExactWriter::end_object(); }
  bool end_array() override {
    if (payload_) return payload_->end_array() && ended();
    if (depth() == 2) in_items_ = false;
    return ExactWriter::end_array();
  }
  bool key(string_t& value) override {
    if (payload_) return payload_->key(value) || refused();
    if (in_items_ && depth() == kItemDepth && value == "payload") {
      payload_.emplace(most_payload_);
      return true;
    }
    last_key_ = value;
    return ExactWriter::key(value);
  }

 private:
  static constexpr std::size_t kUnbounded = static_cast<std::size_t>(-1) / 2;  // the message itself is bounded
  static constexpr int kItemDepth = 3;                                         // document, items, item

  bool refused() { return refuse(payload_->fault().value_or(JsonFault::malformed)); }
  template <typename Payload, typename Through>
  bool scalar(Payload payload, Through through) {
    if (!payload_) return through();
    return payload(*payload_) ? ended() : refused();
  }
  /// After a part of a payload: if it was the last, the payload is written as bytes.
  bool ended() {
    if (payload_->fault()) return refused();
    if (payload_->depth() > 0) return true;
    std::string name = "payloadJson";
    std::string bytes = base64_encode(payload_->take());
    payload_.reset();
    return ExactWriter::key(name) && ExactWriter::string(bytes);
  }

  const std::size_t most_payload_;
  std::string last_key_;
  bool in_items_ = false;
  std::optional<ExactWriter> payload_;  // while one is being written
};

ExactJson written(std::string_view text, ExactWriter& writer) {
  const bool whole = nlohmann::json::sax_parse(text.begin(), text.end(), &writer);
  if (const auto fault = writer.fault()) return *fault;
  if (!whole) return JsonFault::malformed;
  return writer.take();
}

}  // namespace

ExactJson exact_json(std::string_view text, std::size_t most) {
  ExactWriter writer(most);
  return written(text, writer);
}

ExactJson with_exact_payloads(std::string_view tick, std::size_t most) {
  TickWriter writer(most);
  return written(tick, writer);
}

}  // namespace takt
