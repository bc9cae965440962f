import { Sequences } from '@asa/core';
import { describe, expect, it } from 'vitest';
import { selectedAttentionKernels } from '../../../../packages/backend-gpu/src/cuda/kernels/selected-attention';
import { h100, nullContext, nullTensor as tensor } from './null-context';

/** Launches and bytes of scratch memory of selected attention, NSA's, in bf16. */
function run(
  counts: readonly { queries: number; keys?: number }[],
  {
    sharing = 1,
    backward = false,
    capability = 90,
    heads = 64,
    width = 128,
    rope = 0,
    blockSize = 64,
    count = 16,
  } = {},
) {
  const { context, launches, scratchBytes } = nullContext({ capability });
  const blocking = { length: 32, stride: 16, sharing };
  const sequences = Sequences.packed(counts, blocking);
  const { queryRows, keyRows } = sequences;
  const rows = (n: number, heads: number, columns = width) =>
    tensor([n, heads, columns], 'bf16');
  const k = rows(keyRows, 4);
  const inputs = {
    q: rows(queryRows, heads),
    k,
    // Latent where keys have rotary columns.
    v: rope ? k : rows(keyRows, 4),
    ...(rope && {
      qRope: rows(queryRows, heads, rope),
      kRope: rows(keyRows, 1, rope),
    }),
    indices: tensor([sequences.leaderRows(sharing), 4, count], 'i32'),
  };
  const results = {
    o: rows(queryRows, heads),
    lse: tensor([queryRows, heads], 'f32'),
  };
  const attributes = { sequences, scale: 1, blockSize, sharing };
  const kernels = selectedAttentionKernels(context);
  if (backward) {
    kernels.selectedAttentionBackward(
      { ...inputs, ...results, dO: rows(queryRows, heads) },
      {
        dQ: rows(queryRows, heads),
        dK: rows(keyRows, 4),
        dV: rows(keyRows, 4),
        ...(rope && {
          dQRope: rows(queryRows, heads, rope),
          dKRope: rows(keyRows, 1, rope),
        }),
      },
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
        [8192, 1],
        [16_384, 2],
        [32_768, 4],
        [65_536, 8],
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
          2 ** 31 * (1 + 1 / 64) + queries * 4 * 16 * 16,
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

  describe('of lists that see a large share of the past', () => {
    const preset = {
      ...{ heads: 16, width: 56, rope: 32, sharing: 4, blockSize: 16 },
      count: 64,
    };
    const batch = (rows: number, queries: number, keys = queries) =>
      Array.from({ length: rows }, () => ({ queries, keys }));
    const walk = ['listMasks', 'hopperForward'];

    it('goes over all keys behind masks', () => {
      expect(run(batch(8, 4096), preset).entries).toEqual(walk);
      expect(run(batch(8, 512), preset).entries).toEqual(walk);
      // A prompt's later part, whose first leader has fewer queries.
      expect(run(batch(4, 2047, 4001), preset).entries).toEqual(walk);
    });

    it('compiles in how many queries share a list, and a byte of a mask', () => {
      const [, walk] = run(batch(8, 4096), preset).launches;
      expect(walk?.defines).toMatchObject({ SHARING: 4, UNIT: 4, N: 128 });
    });

    it('goes by lists on other cards, of long pasts and in decoding', () => {
      const lists = ['flashForward'];
      const other = { ...preset, capability: 80 };
      expect(run(batch(8, 4096), other).entries).toEqual(lists);
      expect(run(batch(4, 8192), preset).entries).toEqual(lists);
      expect(run(batch(1, 16_384), preset).entries).toEqual(lists);
      expect(run(batch(1, 2048, 16_384), preset).entries).toEqual(lists);
      // Several leaders' rows; those of one.
      expect(run(batch(8, 64, 3000), preset).entries).toContain('flashForward');
      for (const queries of [1, 4]) {
        const few = batch(8, queries, 3000);
        expect(run(few, preset).entries).toContain('hopperDecode');
        expect(run(few, other).entries).toContain('flashForward');
      }
    });

    it('goes backward over all keys behind masks', () => {
      const given = { ...preset, backward: true };
      const walk = ['listMasks', 'rowStatistics', 'hopperBackward', 'sumHeads'];
      const { entries, launches } = run(batch(8, 4096), given);
      expect(entries).toEqual(walk);
      expect(launches[2]?.defines).toMatchObject({ SHARING: 4, UNIT: 4 });
      // Two of 4 heads are 8 rows, three are 12: no lane has a list of those.
      const two = { ...given, sharing: 2 };
      expect(run(batch(8, 4096), two).entries).toEqual(walk);
      for (const [counts, more] of [
        [batch(8, 4096), { sharing: 3 }],
        [batch(8, 4096), { sharing: 8 }],
        [batch(8, 4096), { capability: 80 }],
        [batch(4, 8192), {}],
        [batch(1, 100), {}],
      ] as const) {
        const { entries } = run(counts, { ...given, ...more });
        expect(entries).toContain('flashBackwardQueries');
        expect(entries).toContain('flashBackwardKeys');
      }
    });

    it('goes by lists where masks of all would be too large', () => {
      const wide = { ...preset, heads: 4, width: 64, rope: 64, sharing: 1 };
      expect(run(batch(1, 65_536), wide).entries).toEqual(walk);
      expect(run(batch(16, 65_536), wide).entries).toEqual(['flashForward']);
    });

    it('chooses for a recording of all lengths that there is room for', () => {
      const later = (keys: number) => run(batch(24, 128, keys), preset).entries;
      expect(later(2176)).toEqual(later(4000));
      // Of few queries tiles of the longest sequence are no measure.
      const short = [...batch(1, 1024), ...batch(20, 4)];
      expect(run(short, preset).entries).toEqual(['flashForward']);
    });

    it('goes by lists of more rows, and of blocks that no bits fit', () => {
      const lists = ['flashForward'];
      const more = { ...preset, sharing: 16 };
      expect(run(batch(8, 4096), more).entries).toEqual(lists);
      const small = { ...preset, blockSize: 8, count: 128 };
      expect(run(batch(8, 4096), small).entries).toEqual(lists);
    });

    it('goes over more keys where tiles of lists are slower', () => {
      const wide = { ...preset, heads: 64, width: 128, rope: 64, sharing: 1 };
      expect(run(batch(1, 8192), wide).entries).toEqual(walk);
      expect(run(batch(1, 16_384), wide).entries).toEqual(['flashForward']);
      // Of 8 and of 4 rows: tiles of lists have 16.
      for (const sharing of [2, 1])
        expect(run(batch(4, 8192), { ...preset, sharing }).entries).toEqual(
          walk,
        );
      const taller = { ...preset, heads: 32, width: 64, rope: 64 };
      expect(run(batch(8, 4096), taller).entries).toEqual(walk);
      expect(run(batch(4, 8192), taller).entries).toEqual(['flashForward']);
      const given = { ...taller, backward: true };
      expect(run(batch(8, 4096), given).entries).not.toContain('listMasks');
    });
  });

  it('walks backward over 4,096 leaders at a time on Hopper, else as the L2 cache has rows', () => {
    const walks = (capability: number) =>
      [1024, 8192, 65_536].map(
        (queries) =>
          run([{ queries }], { backward: true, capability }).entries.filter(
            (entry) => /BackwardBlocks$/.test(entry),
          ).length,
      );
    expect(walks(90)).toEqual([1, 2, 16]);
    expect(walks(80)).toEqual([1, 4, 31]);
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
