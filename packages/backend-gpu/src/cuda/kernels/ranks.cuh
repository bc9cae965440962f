// Rows of importance: of the leaders of some sequences, or of all.
#pragma once
#include "common.cuh"

struct Ranks {
  int groups;
  // Selection blocks of a row.
  int places;
  // Leaders of each sequence that there are rows for.
  int first, count;
  // Whether those rows are all that there are, or all lists' rows are.
  int isPart;

  __device__ i64 rowOf(const Sequence &s, int leader) const {
    return isPart ? (i64)blockIdx.z * count + leader - first
                  : s.leaderStart + leader;
  }
};
