#include "core/installation/signer_check.h"

#include <algorithm>

#include "core/db/query.h"
#include "core/installation/presence.h"

namespace takt {

namespace {

struct Signer {
  std::string holder, key;
  bool leads = false;
  static constexpr auto fields() {
    return std::tuple(Field("holder", &Signer::holder), Field("key", &Signer::key), Field("leads", &Signer::leads));
  }
};

// One row of takt.leader, one probe of takt.services' primary key. Its row is written before a dispatcher asks for the lease.
constexpr Query<NoRequest, Signer> kSigner{"signer", R"sql(
  SELECT l.holder, k.key, l.until > now() AS leads
    FROM takt.leader l JOIN takt.services s ON s.id = split_part(l.holder, '@', 1) CROSS JOIN unnest(s.keys) k(key)
   WHERE l.name = 'dispatcher' AND k.key LIKE 'current %'
)sql"};

}  // namespace

SignerCheck::Verdict SignerCheck::ask() {
  const auto rows = query(database_, kSigner);
  const std::scoped_lock lock(mutex_);
  leads_ = !rows.empty() && rows.front().leads;
  if (rows.empty()) return verdict_ = Verdict::unknown;
  holder_ = rows.front().holder;
  fingerprint_ = rows.front().key.substr(kCurrentKey.size());
  const auto own = keys_.keys();
  const auto now = clock_.now();
  const bool holds =
      std::any_of(own.begin(), own.end(), [&](const auto& key) { return key.fingerprint == fingerprint_ && key.valid_at(now); });
  return verdict_ = holds ? Verdict::holds : Verdict::lacks;
}

SignerCheck::Verdict SignerCheck::verdict() const {
  const std::scoped_lock lock(mutex_);
  return verdict_;
}

bool SignerCheck::led() const {
  const std::scoped_lock lock(mutex_);
  return leads_;
}

std::string SignerCheck::fault(bool living) const {
  const std::scoped_lock lock(mutex_);
  if (verdict_ != Verdict::lacks || (living && !leads_)) return "";
  return "lacks the key " + fingerprint_ + " that dispatcher " + holder_ + " signs ticks with; give it the same keys (docs/keys.md)";
}

}  // namespace takt
