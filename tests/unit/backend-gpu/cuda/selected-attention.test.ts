import { Sequences } from '@asa/core';
import { describe, expect, it } from 'vitest';
import { selectedAttentionKernels } from '../../../../packages/backend-gpu/src/cuda/kernels/selected-attention';
import { h100, nullContext, nullTensor as tensor } from './null-context';

/** Launches and bytes of scratch memory of NSA's selected attention, in bf16. */
function run(
  counts: readonly { queries: number; keys?: number }[],
  { sharing = 1, backward = false, capability = 90 } = {},
) {
  const { context, launches, scratchBytes } = nullContext({ capability });
  const blocking = { length: 32, stride: 16, sharing };
  const sequences = Sequences.packed(counts, blocking);
  const { queryRows, keyRows } = sequences;
  const rows = (n: number, heads: number) => tensor([n, heads, 128], 'bf16');
  const inputs = {
    q: rows(queryRows, 64),
    k: rows(keyRows, 4),
    v: rows(keyRows, 4),
    indices: tensor([sequences.leaderRows(sharing), 4, 16], 'i32'),
  };
  const results = {
    o: rows(queryRows, 64),
    lse: tensor([queryRows, 64], 'f32'),
  };
  const attributes = { sequences, scale: 1, blockSize: 64, sharing };
  const kernels = selectedAttentionKernels(context);
  if (backward) {
    kernels.selectedAttentionBackward(
      { ...inputs, ...results, dO: rows(queryRows, 64) },
      { dQ: rows(queryRows, 64), dK: rows(keyRows, 4), dV: rows(keyRows, 4) },
      attributes,
    );
  } else {
    kernels.selectedAttention(inputs, results, attributes);
  }
  return {
    launches,
    entries: launches.map(({ entry }) => entry),
    bytes: scratchBytes(),
  };
}

describe('selected attention of 16 rows a list', () => {
  it.each([
    [90, 'hopperForwardBlocks', 1],
    [80, 'flashForwardBlocks', 3],
  ] as const)(
    'goes by blocks where many are seen, some chunks of leaders at a time: %d',
    (capability, entry, blocks) => {
      for (const [queries, walks] of [
        [8192, 2],
        [16_384, 4],
        [32_768, 8],
        [65_536, 16],
      ] as const) {
        const { entries, launches, bytes } = run([{ queries }], { capability });
        expect(entries).toEqual([
          'listItems',
          ...Array.from({ length: walks }, () => [
            ...[entry, 'joinLists'],
          ]).flat(),
        ]);
        expect(launches[1]?.grid).toEqual([blocks * 132]);
        // Tables of 4 bytes a choice, 12 an item.
        expect(bytes).toBeLessThan(
          2 ** 30 * (1 + 1 / 64) + queries * 4 * 16 * 16,
        );
      }
    },
  );

  it('goes by unions where neighbours share more', () => {
    const union = ['flashForwardUnion'];
    expect(run([{ queries: 4096 }]).entries).toEqual(union);
    const few = Array.from({ length: 80 }, () => ({
      queries: 4,
      keys: 17_000,
    }));
    expect(run(few).entries).toEqual(union);
  });

  it('has more rows a list share a walk', () => {
    expect(run([{ queries: 65_536 }], { sharing: 4 }).entries).toEqual([
      'flashForward',
    ]);
  });

  it('walks backward over as many leaders as the L2 cache has rows of', () => {
    const walks = (queries: number) =>
      run([{ queries }], { backward: true }).entries.filter(
        (entry) => entry === 'hopperBackwardBlocks',
      ).length;
    expect([1024, 8192, 65_536].map(walks)).toEqual([1, 2, 16]);
  });

  it('walks backward by the kernel of the card, two blocks a multiprocessor', () => {
    for (const [capability, entry] of [
      [80, 'flashBackwardBlocks'],
      [90, 'hopperBackwardBlocks'],
      [100, 'flashBackwardBlocks'],
    ] as const)
      for (const sharing of [1, 2, 4]) {
        const given = { backward: true, sharing, capability };
        const { launches } = run([{ queries: 4096 }], given);
        const [walk] = launches.filter(({ entry }) => /Blocks$/.test(entry));
        expect(walk?.entry).toBe(entry);
        expect(2 * (walk?.sharedBytes ?? 0)).toBeLessThan(h100.sharedBytes);
      }
  });
});
