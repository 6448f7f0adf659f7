// Blocks of many matrices, numbered through: where one lies.
#pragma once

#include "common.cuh"

// The part of a block that exists.
struct Tile {
  uint32_t expert, band, group;
  uint32_t first_row, rows, columns;
};

template <class M>
__device__ inline Tile place(const M &m, uint32_t tile) {
  const uint32_t bands = (m.rows + kBlock - 1) / kBlock, groups = (m.columns + kBlock - 1) / kBlock;
  uint32_t local = tile - m.first_tile;
  Tile t;
  t.group = local % groups;
  local /= groups;
  t.band = local % bands;
  t.expert = local / bands;
  t.first_row = t.band * kBlock;
  t.rows = min(m.rows - t.first_row, uint32_t(kBlock));
  t.columns = min(m.columns - t.group * kBlock, uint32_t(kBlock));
  return t;
}
