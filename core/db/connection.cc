// The one file that knows libpqxx, and the differences between its versions 6.4 (Debian 12) and 7.10 (Debian 13).
#include <libpq-fe.h>
#include <poll.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <set>
#include <system_error>
#include <type_traits>
#include <typeinfo>
#include <utility>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#include <pqxx/pqxx>
#pragma GCC diagnostic pop

#include "core/db/database.h"
#include "core/db/deadline.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace takt {

struct Rows::Impl {
  pqxx::result result;
};

namespace {

/// SQLSTATEs that mean "this server cannot serve now" rather than "this statement is wrong".
bool means_unavailable(const std::string& sqlstate) {
  return sqlstate.starts_with("08") || sqlstate.starts_with("57P") || sqlstate == "53300" || sqlstate == "25006" || sqlstate == "53100" ||
         sqlstate == "58030";
}

constexpr const char* kInvalidParameter = "22023";

std::string first_line(const std::string& text) {
  const auto end = text.find('\n');
  const std::string hint = [&] {
    const auto at = text.find("HINT:");
    return at == std::string::npos ? std::string() : " (" + text.substr(at + 7, text.find('\n', at) - at - 7) + ")";
  }();
  std::string line = text.substr(0, end);
  // libpqxx 7.10 puts a prepared statement's name first.
  if (const auto named = line.find("': "); line.starts_with("Failure during '") && named != std::string::npos) line.erase(0, named + 3);
  if (line.starts_with("ERROR:  ")) line.erase(0, 8);
  // libpqxx's own words for a connection that broke since it was last used.
  if (line.starts_with("Could not obtain client encoding") || line == "Connection to database failed") line = "the connection was lost";
  return line + hint;
}

/// Translates libpqxx's exceptions into ours; `body` is what talks to the server.
template <typename Body>
auto translated(Body body) {
  try {
    return body();
  } catch (const pqxx::broken_connection& error) {
    throw DatabaseUnavailable("database: " + first_line(error.what()));
  } catch (const pqxx::in_doubt_error& error) {
    throw DatabaseUnavailable("database: the outcome of a commit is unknown: " + first_line(error.what()));
    // libpqxx 6 does not derive class 40 from sql_error, and gives it no SQLSTATE.
  } catch (const pqxx::statement_completion_unknown& error) {
    throw DatabaseUnavailable("database: the outcome of a statement is unknown: " + first_line(error.what()));
  } catch (const pqxx::deadlock_detected& error) {
    throw DatabaseError(first_line(error.what()), "40P01");
  } catch (const pqxx::transaction_rollback& error) {
    throw DatabaseError(first_line(error.what()), "40001");
  } catch (const pqxx::sql_error& error) {
    const std::string& sqlstate = error.sqlstate();
    if (means_unavailable(sqlstate)) throw DatabaseUnavailable("database: " + first_line(error.what()), sqlstate);
    throw DatabaseError(first_line(error.what()), sqlstate);
  } catch (const pqxx::failure& error) {
    throw DatabaseUnavailable("database: " + first_line(error.what()));
  }
}

/// libpqxx wants parameters as a container whose elements may be null C strings.
std::vector<const char*> c_strings(const Params& params) {
  std::vector<const char*> pointers;
  pointers.reserve(params.values().size());
  for (const auto& value : params.values()) pointers.push_back(value ? value->c_str() : nullptr);
  return pointers;
}

// What differs between libpqxx 6.4 and 7.
#if PQXX_VERSION_MAJOR < 7
void forbid_reconnecting(pqxx::connection& connection) { connection.inhibit_reactivation(true); }
void disconnect(pqxx::connection& connection) { connection.disconnect(); }
pqxx::result run_sql(pqxx::transaction_base& on, const std::string& sql, const Params& params) {
  const auto pointers = c_strings(params);
  return on.exec_params(sql, pqxx::prepare::make_dynamic_params(pointers));
}
pqxx::result run_prepared(pqxx::transaction_base& on, const std::string& name, const Params& params) {
  const auto pointers = c_strings(params);
  return on.exec_prepared(name, pqxx::prepare::make_dynamic_params(pointers));
}
#else
void forbid_reconnecting(pqxx::connection&) {}  // it never does
void disconnect(pqxx::connection& connection) { connection.close(); }
pqxx::params to_pqxx(const Params& params) {
  pqxx::params result;
  for (const char* pointer : c_strings(params)) result.append(pointer);
  return result;
}
pqxx::result run_sql(pqxx::transaction_base& on, const std::string& sql, const Params& params) {
  return on.exec_params(sql, to_pqxx(params));
}
pqxx::result run_prepared(pqxx::transaction_base& on, const std::string& name, const Params& params) {
  return on.exec_prepared(name, to_pqxx(params));
}
#endif

/// What Takt sets in its sessions, or in each transaction behind a pooler. A prepared statement's plan is kept, also one that was
/// made while a table was nearly empty: then the path must be the index's all the same. Where there is no index, a forbidden
/// path costs so much that PostgreSQL would compile it.
std::vector<std::pair<std::string, std::string>> session_settings(const DatabaseSettings& settings) {
  std::vector<std::pair<std::string, std::string>> all{{"statement_timeout", std::to_string(settings.statement_timeout.count())},
                                                       {"lock_timeout", std::to_string(settings.lock_timeout.count())},
                                                       {"idle_in_transaction_session_timeout", "60000"}};
  if (settings.takts_tables) all.insert(all.end(), {{"timezone", "UTC"}, {"enable_seqscan", "off"}, {"jit", "off"}});
  return all;
}

class Listener final : public pqxx::notification_receiver {
 public:
  explicit Listener(pqxx::connection& connection) : pqxx::notification_receiver(connection, "takt_due") {}
  void operator()(const std::string& payload, int) override { jobs_.insert(jobs_.size() < kMost ? payload : ""); }
  std::set<std::string> take() { return std::exchange(jobs_, {}); }

 private:
  static constexpr std::size_t kMost = 63;
  std::set<std::string> jobs_;
};

class PqxxConnection final : public DatabaseConnection {
 public:
  PqxxConnection(const std::string& conninfo, const DatabaseSettings& settings)
      : connection_(conninfo),
        deadline_(connection_.sock(), settings.answer_grace),
        limit_(settings.statement_timeout),
        prepares_(!settings.transaction_pooler) {
    if (settings.transaction_pooler) {
      for (const auto& [name, value] : session_settings(settings)) local_settings_ += "SET LOCAL " + name + " = '" + value + "';";
    }
    forbid_reconnecting(connection_);  // a lost connection is an error here, not a silent new one
    asked([&] {
      const RoundTrip trips(deadline_, limit_);
      pqxx::nontransaction on(connection_);
      if (!settings.transaction_pooler) limit_ = Duration(on.exec(kAskLimit).at(0).at(0).as<std::int64_t>());
      if (!settings.role.empty()) on.exec("SET ROLE " + on.quote_name(settings.role));
      return 0;
    });
  }
  ~PqxxConnection() override {
    // No UNLISTEN: the session ends, and a server that stands still would be waited for.
    deadline_.close();
    disconnect(connection_);
    listener_.reset();
  }

  Session& session() override {
    autocommit_session_.emplace(*this, nullptr);
    return *autocommit_session_;
  }

  void transaction(const std::function<void(Session&)>& body) override {
    asked([&] {
      const RoundTrip ends(deadline_, limit_);  // BEGIN, and the ROLLBACK of work's destructor
      pqxx::work work(connection_);
      if (!local_settings_.empty()) work.exec(local_settings_);
      PqxxSession session(*this, &work);
      {
        const RoundTrip none(deadline_, kNoLimit);
        body(session);
      }
      const RoundTrip commit(deadline_, session.limit());
      work.commit();
      return 0;
    });
  }

  void outside_transaction(const std::string& sql) override {
    asked([&] {
      pqxx::nontransaction(connection_).exec(sql);
      return 0;
    });
  }

  [[nodiscard]] bool usable() const override { return connection_.is_open() && deadline_.given_up_after() == Duration(0); }

  std::set<std::string> wait_notifications(Duration timeout, int or_readable) override {
    return asked([&] {
      if (auto jobs = heard(); !jobs.empty()) return jobs;
      std::array<pollfd, 2> watched{{{connection_.sock(), POLLIN, 0}, {or_readable, POLLIN, 0}}};
      ::poll(watched.data(), watched.size(), static_cast<int>(timeout.count()));
      return watched[0].revents != 0 ? heard() : std::set<std::string>();
    });
  }

 private:
  static constexpr Duration kNoLimit{0};
  static constexpr const char* kAskLimit =
      "SELECT (pg_catalog.date_part('epoch', pg_catalog.current_setting('statement_timeout')::pg_catalog.interval)"
      "        OPERATOR(pg_catalog.*) 1000)::pg_catalog.int8";  // the view of all settings costs a millisecond

  class PqxxSession final : public Session {
   public:
    PqxxSession(PqxxConnection& owner, pqxx::transaction_base* within) : owner_(owner), within_(within), limit_(owner.limit_) {}

    Rows exec(const Statement& statement, const Params& params) override {
      if (!owner_.prepares_) return exec(std::string(statement.sql), params);
      return owner_.asked([&] {
        if (owner_.prepared_.insert(statement.name).second) {
          try {
            prepare(statement);
          } catch (...) {
            owner_.prepared_.erase(statement.name);
            throw;
          }
        }
        return on([&](pqxx::transaction_base& t) { return run_prepared(t, statement.name, params); });
      });
    }
    Rows exec(const std::string& sql, const Params& params) override {
      return owner_.asked([&] { return on([&](pqxx::transaction_base& t) { return run_sql(t, sql, params); }); });
    }
    void judge(const std::string& sql) override {
      // A name of its own each time: libpqxx 6 remembers those that were refused.
      const std::string name = "takt_judged_" + std::to_string(++owner_.judged_);
      owner_.asked([&] {
        prepare({name.c_str(), sql.c_str()});
        owner_.connection_.unprepare(name);
        return 0;
      });
    }
    Rows script(const std::string& sql) override {
      return owner_.asked([&] { return on([&](pqxx::transaction_base& t) { return t.exec(sql); }); });
    }
    void limit_statements(Duration limit) override {
      if (within_ == nullptr) throw std::logic_error("a limit for statements is set within a transaction");
      script("SET LOCAL statement_timeout = " + std::to_string(limit.count()));
      limit_ = limit;
    }
    [[nodiscard]] Duration limit() const { return limit_; }

   private:
    void prepare(const Statement& statement) {
      const RoundTrip trip(owner_.deadline_, limit_);
      owner_.connection_.prepare(statement.name, statement.sql);
#if PQXX_VERSION_MAJOR < 7
      owner_.connection_.prepare_now(statement.name);  // and not with the first execution, in the time of one
#endif
    }
    template <typename Body>
    Rows on(Body body) {
      if (within_ != nullptr) return answer(*within_, body);
      pqxx::nontransaction autocommit(owner_.connection_);
      if (owner_.local_settings_.empty()) return answer(autocommit, body);
      return bounded(autocommit, body);
    }
    template <typename Body>
    Rows answer(pqxx::transaction_base& on, Body body) {
      const RoundTrip trip(owner_.deadline_, limit_);
      return Rows(std::make_shared<Rows::Impl>(Rows::Impl{body(on)}));
    }
    /// A pooler gives each transaction any session, so a statement brings its timeouts along: three round trips.
    template <typename Body>
    Rows bounded(pqxx::nontransaction& plain, Body body) {
      const auto run = [&](const std::string& sql) { answer(plain, [&](pqxx::transaction_base& t) { return t.exec(sql); }); };
      run("BEGIN;" + owner_.local_settings_);
      try {
        auto rows = answer(plain, body);
        run("COMMIT");
        return rows;
      } catch (...) {
        try {
          run("ROLLBACK");
        } catch (const std::exception&) {
          owner_.deadline_.close();
          disconnect(owner_.connection_);  // it may still be in that transaction
        }
        throw;
      }
    }
    PqxxConnection& owner_;
    pqxx::transaction_base* within_;
    Duration limit_;
  };

  /// Translates libpqxx's exceptions, and says so where the connection broke because the server did not answer.
  template <typename Body>
  std::invoke_result_t<Body> asked(Body body) {
    return translated([&]() -> std::invoke_result_t<Body> {
      try {
        return body();
      } catch (const pqxx::failure& error) {
        const auto silent = deadline_.given_up_after();
        // The server's refusals have a class of their own or a SQLSTATE. What has neither is libpq's own word, of a connection that
        // breaks; also where libpq holds it for open still, since a notice could be read after the statement could not be sent.
        const auto* refusal = dynamic_cast<const pqxx::sql_error*>(&error);
        const bool own_word = refusal != nullptr && typeid(*refusal) == typeid(pqxx::sql_error) && refusal->sqlstate().empty();
        if (silent == Duration(0) && own_word) {
          throw DatabaseUnavailable("database: " + first_line(error.what()));
        }
        if (silent == Duration(0)) throw;
        throw DatabaseUnavailable("database: the server did not answer for " + format_duration(silent) +
                                  ", so its connection was given up: " + first_line(error.what()));
      }
    });
  }

  std::set<std::string> heard() {
    const RoundTrip trip(deadline_, limit_);
    if (!listener_) listener_ = std::make_unique<Listener>(connection_);
    connection_.get_notifs();
    // Neither of both says so where the connection broke under it, or before.
    if (!connection_.is_open()) throw pqxx::broken_connection("the connection is lost");
    return listener_->take();
  }

  pqxx::connection connection_;
  AnswerDeadline deadline_;
  Duration limit_;  // of a statement, as the server has it: the URL's options may say another, or a proxy leave ours out
  bool prepares_;
  std::string local_settings_;  // behind a transaction pooler
  std::set<std::string> prepared_;
  int judged_ = 0;
  std::optional<PqxxSession> autocommit_session_;
  std::unique_ptr<Listener> listener_;
};

/// Whether libpq would wait for as long as it takes.
bool means_for_ever(std::string_view connect_timeout) {
  return std::strtol(std::string(connect_timeout).c_str(), nullptr, 10) <= 0;  // as libpq reads it
}

/// The URL with Takt's own settings added, in libpq's key=value form.
Secret connection_info(const Secret& url, const DatabaseSettings& settings) {
  char* fault = nullptr;
  PQconninfoOption* options = PQconninfoParse(url.reveal().c_str(), &fault);
  if (options == nullptr) {
    PQfreemem(fault);
    throw DatabaseUnavailable("database: the URL is not understood; give postgresql://user:password@host:port/database", kInvalidParameter);
  }
  std::string info;
  const auto add = [&info](const std::string& key, const std::string& value) {
    info += key + "='";
    for (const char c : value) {
      if (c == '\'' || c == '\\') info += '\\';
      info += c;
    }
    info += "' ";
  };
  std::set<std::string> given;
  std::string given_options;
  for (const auto* option = options; option->keyword != nullptr; ++option) {
    if (option->val == nullptr) continue;
    if (std::string_view(option->keyword) == "connect_timeout" && means_for_ever(option->val)) continue;
    given.insert(option->keyword);
    if (std::string_view(option->keyword) == "options")
      given_options = option->val;
    else
      add(option->keyword, option->val);
  }
  PQconninfoFree(options);
  const auto add_default = [&](const std::string& key, const std::string& value) {
    if (!given.contains(key)) add(key, value);
  };
  add_default("application_name", settings.application_name);
  add_default("connect_timeout", std::to_string(std::max<std::int64_t>(2, settings.connect_timeout.count() / 1000)));
  // A silent network is noticed in about ten seconds.
  add_default("keepalives_idle", "5");
  add_default("keepalives_interval", "2");
  add_default("keepalives_count", "3");
  add_default("tcp_user_timeout", "10000");
  if (!settings.transaction_pooler) {
    // One's own come last, so they win.
    std::string own;
    for (const auto& [name, value] : session_settings(settings)) own += "-c " + name + "=" + value + " ";
    add("options", own + given_options);
  } else if (!given_options.empty()) {
    add("options", given_options);
  }
  Secret result(info);
  wipe(info);
  return result;
}

}  // namespace

DatabaseUnavailable::DatabaseUnavailable(const std::string& message, std::string sqlstate)
    : std::runtime_error(message), sqlstate_(std::move(sqlstate)) {}

DatabaseError::DatabaseError(const std::string& message, std::string sqlstate)
    : std::runtime_error(message), sqlstate_(std::move(sqlstate)) {}

bool DatabaseError::retryable() const {
  return sqlstate_ == "40001" || sqlstate_ == "40P01" || sqlstate_ == "55P03" || sqlstate_ == "57014";
}

bool DatabaseError::short_of_resources() const { return sqlstate_.starts_with("53"); }

bool too_large_together(const DatabaseError& error) {
  return error.sqlstate() == "54000" || error.sqlstate() == "53200" || error.sqlstate() == "57014";
}

Rows::Rows(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
std::size_t Rows::size() const { return static_cast<std::size_t>(impl_->result.size()); }
std::size_t Rows::affected() const { return static_cast<std::size_t>(impl_->result.affected_rows()); }
std::size_t Rows::columns() const { return static_cast<std::size_t>(impl_->result.columns()); }
std::string Rows::column_name(std::size_t column) const { return impl_->result.column_name(static_cast<pqxx::row::size_type>(column)); }

bool Rows::column_is(std::size_t column, const char* name, ColumnKind kind) const {
  // Object ids of PostgreSQL's own types, which never change: its pg_type.dat.
  constexpr pqxx::oid kBool = 16, kInt8 = 20, kInt2 = 21, kInt4 = 23, kText = 25, kFloat4 = 700, kFloat8 = 701, kVarchar = 1043;
  const auto at = static_cast<pqxx::row::size_type>(column);
  if (std::strcmp(impl_->result.column_name(at), name) != 0) return false;
  const auto type = impl_->result.column_type(at);
  switch (kind) {
    case ColumnKind::boolean: return type == kBool;
    case ColumnKind::integer: return type == kInt8 || type == kInt4 || type == kInt2;
    case ColumnKind::real: return type == kFloat8 || type == kFloat4;
    case ColumnKind::text: return type == kText || type == kVarchar;
  }
  return false;
}

namespace {
pqxx::field field_of(const pqxx::result& result, std::size_t row, std::size_t column) {
  return result[static_cast<pqxx::result::size_type>(row)][static_cast<pqxx::row::size_type>(column)];
}
}  // namespace

std::int64_t integer_of(std::string_view text) {
  std::int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}
double real_of(std::string_view text) { return std::strtod(std::string(text).c_str(), nullptr); }

void Rows::cells(std::size_t row, std::span<std::optional<std::string_view>> room) const {
  const pqxx::row from = impl_->result[static_cast<pqxx::result::size_type>(row)];
  for (std::size_t i = 0; i < room.size(); ++i) {
    const auto field = from[static_cast<pqxx::row::size_type>(i)];
    if (field.is_null()) {
      room[i].reset();
    } else {
      room[i].emplace(field.c_str(), static_cast<std::size_t>(field.size()));
    }
  }
}

bool Rows::is_null(std::size_t row, std::size_t column) const { return field_of(impl_->result, row, column).is_null(); }
std::string_view Rows::text(std::size_t row, std::size_t column) const {
  const auto field = field_of(impl_->result, row, column);
  return {field.c_str(), static_cast<std::size_t>(field.size())};
}
std::int64_t Rows::integer(std::size_t row, std::size_t column) const { return integer_of(text(row, column)); }
bool Rows::boolean(std::size_t row, std::size_t column) const { return text(row, column) == "t"; }

namespace {

/// Waits for what libpq waits for; false once `until` has come.
bool poll_connecting(PGconn* connection, PostgresPollingStatusType wanted, SteadyTime until) {
  const auto left = std::chrono::duration_cast<Duration>(until - std::chrono::steady_clock::now());
  pollfd watched{PQsocket(connection), static_cast<short>(wanted == PGRES_POLLING_READING ? POLLIN : POLLOUT), 0};
  return left > Duration(0) && ::poll(&watched, 1, static_cast<int>(left.count())) > 0;
}

/// The last word of libpq's text where that is a SQLSTATE.
std::string sqlstate_at_end(std::string_view text) {
  constexpr std::size_t kLength = 5;
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  if (text.size() <= kLength || text[text.size() - kLength - 1] != ' ') return "";
  const auto word = text.substr(text.size() - kLength);
  const bool fits = word.find_first_not_of("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == std::string_view::npos;
  return fits ? std::string(word) : "";
}

}  // namespace

std::string connection_refusal(const Secret& url, const DatabaseSettings& settings, Duration patience) {
  const auto until = std::chrono::steady_clock::now() + patience;
  const auto info = connection_info(url, settings);
  const std::unique_ptr<PGconn, decltype(&PQfinish)> connection(PQconnectStart(info.reveal().c_str()), PQfinish);
  if (!connection) return "";
  PQsetErrorVerbosity(connection.get(), PQERRORS_SQLSTATE);
  auto status = PQstatus(connection.get()) == CONNECTION_BAD ? PGRES_POLLING_FAILED : PGRES_POLLING_WRITING;
  while (status == PGRES_POLLING_READING || status == PGRES_POLLING_WRITING) {
    if (!poll_connecting(connection.get(), status, until)) return "";
    status = PQconnectPoll(connection.get());
  }
  return status == PGRES_POLLING_FAILED ? sqlstate_at_end(PQerrorMessage(connection.get())) : "";
}

std::unique_ptr<DatabaseConnection> connect_database(const Secret& url, const DatabaseSettings& settings) {
  const auto info = connection_info(url, settings);
  try {
    return translated([&]() -> std::unique_ptr<DatabaseConnection> { return std::make_unique<PqxxConnection>(info.reveal(), settings); });
  } catch (const std::system_error& error) {
    throw DatabaseUnavailable(std::string("database: this process has no file descriptor or thread left to watch a connection with: ") +
                              error.what());
  }
}

}  // namespace takt
