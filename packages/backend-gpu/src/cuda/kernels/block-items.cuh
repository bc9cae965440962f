// What a walk over those that chose a block leaves to the kernels behind it.
#pragma once
#include "flash.cuh"

/** Parts of 16 rows of a list: its leader's queries by the heads that share it. */
constexpr int LIST_PARTS = SHARING * UNIT / 16;
/** 16-byte words of a half of a part: every other 16 columns, as lanes hold them. */
constexpr int HALF_PART = KEY;
/** float4s of an item's sums that each of SUMMERS threads has. */
constexpr int SUMMERS = 128;
constexpr int ITEM_WORDS = (KEY + VALUE) / 8;

/** Which lists have a block: where they lie among the entries. */
struct Item {
  // Its row of the inverse.
  int row;
  int first, count;
  // Which of the further items it is; -1 for a block's first one.
  int further;
};
