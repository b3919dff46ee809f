#pragma once
#include <random>
#include <string>

namespace takt {

/// JSON that loses something wherever it passes through a double, a fixed depth or an encoding that is not exact: 64-bit and longer
/// integers, decimals with their zeros, exponents, texts at the edges of UTF-8, equal keys, nesting.
std::string random_json(std::mt19937& dice, int depth = 3);

}  // namespace takt
