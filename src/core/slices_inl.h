// Body of CombineSubtrees (core/slices.h).
#pragma once

#include <map>
#include <optional>
#include <utility>

#include "base/check.h"

namespace shoal {
namespace slices_internal {

template <class V, class AddFn>
std::optional<V> Combine(int begin, int size, std::map<std::pair<int, int>, V>& parts, AddFn& add) {
  if (auto found = parts.find({begin, size}); found != parts.end()) return std::move(found->second);
  if (size == 1) return std::nullopt;  // absent
  auto left = Combine(begin, size / 2, parts, add);
  auto right = Combine(begin + size / 2, size / 2, parts, add);
  if (!left) return right;
  if (right) add(*left, *right);
  return left;
}

}  // namespace slices_internal

template <class V, class AddFn>
V CombineSubtrees(std::vector<std::pair<Subtree, V>> parts, AddFn&& add) {
  std::map<std::pair<int, int>, V> by_place;
  for (auto& [tree, value] : parts) by_place.emplace(std::pair{tree.begin, tree.size}, std::move(value));
  auto root = slices_internal::Combine(0, kSlices, by_place, add);
  SHOAL_CHECK(root.has_value());
  return std::move(*root);
}

}  // namespace shoal
