# Writes OUTPUT: one constant array of {version, name, sql} from FILES, in order.
set(entries "")
foreach(file IN LISTS FILES)
  get_filename_component(name "${file}" NAME_WE)
  string(REGEX MATCH "^[0-9]+" version "${name}")
  string(REGEX REPLACE "^0+" "" version "${version}")
  file(READ "${file}" sql)
  # A string literal may hold 64 KiB; a migration is split at every 8,000 characters.
  set(pieces "")
  string(LENGTH "${sql}" length)
  set(at 0)
  while(at LESS length)
    string(SUBSTRING "${sql}" ${at} 8000 piece)
    string(APPEND pieces "R\"takt_sql(${piece})takt_sql\"\n")
    math(EXPR at "${at} + 8000")
  endwhile()
  string(APPEND entries "    {${version}, \"${name}\", ${pieces}},\n")
endforeach()
file(WRITE "${OUTPUT}"
"// Generated from migrations/*.sql.
#include \"migrations/embedded.h\"
namespace takt {
namespace {
constexpr Migration kMigrations[] = {
${entries}};
}  // namespace
std::span<const Migration> embedded_migrations() { return kMigrations; }
}  // namespace takt
")
