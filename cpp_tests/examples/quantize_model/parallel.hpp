// A loop over rows on several threads.
#pragma once

#include <cstdint>
#include <functional>

using RangeBody = std::function<void(std::int64_t begin, std::int64_t end)>;

// Calls `body` on ranges that cover 0 to `count` once. Throws what a body threw, after all have ended.
void for_each_range(std::int64_t count, unsigned threads, const RangeBody &body);
