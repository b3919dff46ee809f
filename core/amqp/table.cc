#include "core/amqp/table.h"

#include "core/text/text.h"
#include "core/time/time.h"

namespace takt::amqp {

namespace {

constexpr int kMaxDepth = 8;
constexpr std::size_t kMaxHeaderBytes = 16 * 1024;

nlohmann::json value_to_json(const amqp_field_value_t& field, int depth) {
  const auto text = [&] { return printable({static_cast<const char*>(field.value.bytes.bytes), field.value.bytes.len}, kMaxHeaderBytes); };
  switch (field.kind) {
    case AMQP_FIELD_KIND_BOOLEAN: return field.value.boolean != 0;
    case AMQP_FIELD_KIND_I8: return field.value.i8;
    case AMQP_FIELD_KIND_U8: return field.value.u8;
    case AMQP_FIELD_KIND_I16: return field.value.i16;
    case AMQP_FIELD_KIND_U16: return field.value.u16;
    case AMQP_FIELD_KIND_I32: return field.value.i32;
    case AMQP_FIELD_KIND_U32: return field.value.u32;
    case AMQP_FIELD_KIND_I64: return field.value.i64;
    case AMQP_FIELD_KIND_U64: return field.value.u64;
    case AMQP_FIELD_KIND_F32: return static_cast<double>(field.value.f32);
    case AMQP_FIELD_KIND_F64: return field.value.f64;
    case AMQP_FIELD_KIND_UTF8:
    case AMQP_FIELD_KIND_BYTES: return text();
    case AMQP_FIELD_KIND_TIMESTAMP: return field.value.u64;
    case AMQP_FIELD_KIND_TABLE: return table_to_json(field.value.table, depth + 1);
    case AMQP_FIELD_KIND_ARRAY: {
      auto list = nlohmann::json::array();
      for (int i = 0; depth < kMaxDepth && i < field.value.array.num_entries; ++i) {
        list.push_back(value_to_json(field.value.array.entries[i], depth + 1));
      }
      return list;
    }
    default: return nullptr;
  }
}

}  // namespace

Table::Table(const Arguments& arguments) {
  for (const auto& [key, value] : arguments) {
    amqp_table_entry_t entry;
    entry.key = {key.size(), const_cast<char*>(key.data())};
    if (const auto* number = std::get_if<std::int64_t>(&value)) {
      entry.value.kind = AMQP_FIELD_KIND_I64;
      entry.value.value.i64 = *number;
    } else {
      const auto& text = std::get<std::string>(value);
      entry.value.kind = AMQP_FIELD_KIND_UTF8;
      entry.value.value.bytes = {text.size(), const_cast<char*>(text.data())};
    }
    entries_.push_back(entry);
  }
}

amqp_table_t Table::get() const { return {static_cast<int>(entries_.size()), const_cast<amqp_table_entry_t*>(entries_.data())}; }

nlohmann::json table_to_json(const amqp_table_t& table, int depth) {
  auto object = nlohmann::json::object();
  for (int i = 0; depth < kMaxDepth && i < table.num_entries; ++i) {
    const auto& entry = table.entries[i];
    const std::string key = printable({static_cast<const char*>(entry.key.bytes), entry.key.len}, 256);
    object[key] = value_to_json(entry.value, depth);
  }
  return object;
}

}  // namespace takt::amqp
