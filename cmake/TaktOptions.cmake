# Warnings, hardening and sanitizers: one interface target, linked by every target of the project.
set(TAKT_SANITIZE "" CACHE STRING "Sanitizers, comma-separated: address,undefined or thread")

add_library(takt_options INTERFACE)
add_library(takt::options ALIAS takt_options)
target_include_directories(takt_options INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_options(takt_options INTERFACE
  -Wall -Wextra -Wpedantic -Werror -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor
  -fstack-protector-strong)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 15)
  # GCC 12 and 14 report these falsely inside std::string (gcc bugs 105329, 105651).
  target_compile_options(takt_options INTERFACE -Wno-array-bounds -Wno-restrict -Wno-stringop-overflow -Wno-stringop-overread)
endif()
target_link_options(takt_options INTERFACE -Wl,-z,relro,-z,now)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
include(CheckPIESupported)
check_pie_supported()

if(TAKT_SANITIZE)
  # Not optimised with address and undefined together: gcc spends three quarters of its time on optimising their checks
  # (core/config/reader.cc 25 s, without 9 s), and the tests wait for services more than for the processor.
  if(TAKT_SANITIZE STREQUAL "address,undefined")
    set(takt_sanitize_level -O0)
  else()
    set(takt_sanitize_level -O1)
  endif()
  target_compile_options(takt_options INTERFACE -fsanitize=${TAKT_SANITIZE} -fno-omit-frame-pointer ${takt_sanitize_level})
  if(TAKT_SANITIZE MATCHES "undefined")
    # Its check reads memory through a pipe: in a process without a free descriptor, as tests make one, every object is "invalid".
    target_compile_options(takt_options INTERFACE -fno-sanitize=vptr)
  endif()
  target_link_options(takt_options INTERFACE -fsanitize=${TAKT_SANITIZE})
elseif(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  target_compile_options(takt_options INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()

# ccache where it is present; the sloppiness is what precompiled headers need to be cached.
find_program(TAKT_CCACHE ccache)
if(TAKT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime "${TAKT_CCACHE}")
endif()

# The one precompiled header: the heavy standard and third-party headers, compiled once for all folders.
add_library(takt_pch OBJECT "${CMAKE_SOURCE_DIR}/cmake/pch.cc")
target_link_libraries(takt_pch PRIVATE takt_options)
target_precompile_headers(takt_pch PRIVATE "${CMAKE_SOURCE_DIR}/cmake/pch.h")

# takt_library(name SOURCES… LINK…): a static library of one folder, with the project's options.
function(takt_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(takt_${name} STATIC ${ARG_SOURCES})
  add_library(takt::${name} ALIAS takt_${name})
  target_link_libraries(takt_${name} PUBLIC takt::options ${ARG_LINK})
  target_precompile_headers(takt_${name} REUSE_FROM takt_pch)
endfunction()
