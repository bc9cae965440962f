// Rows of importance: of the leaders of some sequences, or of all.
#pragma once
#include "common.cuh"

struct Ranks {
  int groups;
  // Selection blocks of a row.
  int places;
  // The first leader of each sequence that there are rows for, and how many
  // rows a sequence has; 0: all leaders, numbered as lists are.
  int first, perSequence;

  __device__ i64 rowOf(const Sequence &s, int leader) const {
    return perSequence > 0 ? (i64)blockIdx.z * perSequence + leader - first
                           : s.leaderStart + leader;
  }
};
