#pragma once
#include <nlohmann/json.hpp>
#include <vector>

#include "core/amqp/channel.h"
#include "core/amqp/librabbitmq.h"

namespace takt::amqp {

/// Arguments as librabbitmq's table; views into `arguments`, which must outlive it.
class Table {
 public:
  explicit Table(const Arguments& arguments);
  [[nodiscard]] amqp_table_t get() const;

 private:
  std::vector<amqp_table_entry_t> entries_;
};

/// A received table as JSON; values of types that JSON lacks become null, nesting deeper than 8 is cut.
nlohmann::json table_to_json(const amqp_table_t& table, int depth = 0);

}  // namespace takt::amqp
