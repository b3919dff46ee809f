#include "worker/job_catalog.h"

#include "core/log.h"

namespace takt {

namespace {

constexpr Statement kChanged{"catalog_changed", R"sql(
  SELECT j.id, j.name, j.definition::text, j.removed_at IS NOT NULL, j.version, (extract(epoch FROM c.now) * 1000000)::bigint
    FROM (SELECT clock_timestamp() AS now) c LEFT JOIN takt.jobs j ON j.version > $1 ORDER BY j.version
)sql"};

constexpr Duration kAskInterval = std::chrono::seconds(1);

}  // namespace

void JobCatalog::refresh() {
  std::int64_t known = 0;
  {
    const std::scoped_lock lock(mutex_);
    known = version_;
  }
  const auto asked = clock_.steady();
  const auto rows = database_.exec(kChanged, Params::of(known));
  clock_.hear(rows.integer(0, 5), asked);
  const std::scoped_lock lock(mutex_);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows.is_null(i, 0)) continue;
    const std::string name(rows.text(i, 1));
    version_ = std::max(version_, rows.integer(i, 4));
    if (rows.boolean(i, 3)) {
      jobs_.erase(name);
      continue;
    }
    try {
      jobs_[name] =
          std::make_shared<const CatalogJob>(CatalogJob{rows.integer(i, 0), job_from_json(name, nlohmann::json::parse(rows.text(i, 2)))});
    } catch (const nlohmann::json::exception& error) {
      jobs_.erase(name);
      log_error("job definition unreadable", {{"job", name}, {"error", error.what()}, {"then", "run takt apply"}});
    }
  }
}

bool JobCatalog::refresh_rarely() {
  {
    const std::scoped_lock lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (now - last_asked_ < kAskInterval) return false;
    last_asked_ = now;
  }
  refresh();
  return true;
}

std::shared_ptr<const CatalogJob> JobCatalog::known(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  const auto found = jobs_.find(name);
  return found == jobs_.end() ? nullptr : found->second;
}

std::shared_ptr<const CatalogJob> JobCatalog::find(const std::string& name) {
  if (auto job = known(name)) return job;
  return refresh_rarely() ? known(name) : nullptr;
}

}  // namespace takt
