# Writes OUTPUT: two constant arrays, {version, name, sql} of each file of MIGRATIONS and {name, sql} of each of FUNCTIONS, in order.

# The file's text as a C++ literal: one piece may hold 64 KiB, so it is split at every 8,000 characters.
function(literal_of file result)
  file(READ "${file}" sql)
  set(pieces "")
  string(LENGTH "${sql}" length)
  set(at 0)
  while(at LESS length)
    string(SUBSTRING "${sql}" ${at} 8000 piece)
    string(APPEND pieces "R\"takt_sql(${piece})takt_sql\"\n")
    math(EXPR at "${at} + 8000")
  endwhile()
  set(${result} "${pieces}" PARENT_SCOPE)
endfunction()

set(migrations "")
foreach(file IN LISTS MIGRATIONS)
  get_filename_component(name "${file}" NAME_WE)
  string(REGEX MATCH "^[0-9]+" version "${name}")
  string(REGEX REPLACE "^0+" "" version "${version}")
  literal_of("${file}" sql)
  string(APPEND migrations "    {${version}, \"${name}\", ${sql}},\n")
endforeach()
set(functions "")
foreach(file IN LISTS FUNCTIONS)
  get_filename_component(name "${file}" NAME_WE)
  literal_of("${file}" sql)
  string(APPEND functions "    {\"${name}\", ${sql}},\n")
endforeach()
file(WRITE "${OUTPUT}"
"// Generated from migrations/*.sql and migrations/functions/*.sql.
#include \"migrations/embedded.h\"
namespace takt {
namespace {
constexpr Migration kMigrations[] = {
${migrations}};
constexpr FunctionFile kFunctions[] = {
${functions}};
}  // namespace
std::span<const Migration> embedded_migrations() { return kMigrations; }
std::span<const FunctionFile> embedded_functions() { return kFunctions; }
}  // namespace takt
")
