import { blockCount, Sequences } from '@asa/core';
import { describe, expect, it } from 'vitest';
import type {
  AttentionShape,
  View,
} from '../../../../packages/backend-gpu/src/cuda/kernels/attention-tile';
import {
  type HopperCut,
  hopperBackwardCut,
  hopperBlocksTile,
  hopperForwardCut,
  hopperImportanceCut,
  hopperKeysCut,
  hopperPlan,
  hopperQueriesCut,
} from '../../../../packages/backend-gpu/src/cuda/kernels/hopper';
import { h100 as facts } from './null-context';

const shape = (
  width: number,
  ropeWidth: number,
  valueWidth: number,
): AttentionShape => ({
  ...{ heads: 64, keyHeads: 4, width, ropeWidth, valueWidth },
  dtype: 'bf16',
});

const view = (more: Partial<View> = {}) =>
  ({
    ...{ kind: 'ATTENTION', unitHeads: 16, rows: 4096, keys: 256 },
    ...{ sequences: Sequences.uniform(1, 256), window: 2 ** 30, ...more },
  }) as View;

/** Of one sequence; a stride: compressed keys, 32 tokens each. */
function viewOf(queries: number, more: Partial<View> = {}) {
  const { stride } = more;
  const sequences = Sequences.uniform(1, queries);
  const keys = stride ? blockCount(queries, { length: 32, stride }) : queries;
  return view({
    ...{ sequences, keys, rows: queries * 16, keyRows: keys },
    keyTiles: (tile) => Math.ceil(keys / tile),
    ...(stride && { kind: 'COMPRESSED', length: 32 }),
    ...more,
  });
}

function cuts(of: AttentionShape, latent: boolean, at: View, on = facts) {
  return [
    hopperForwardCut(of, latent, at, on),
    hopperQueriesCut(of, latent, at, on),
    hopperKeysCut(of, at, on),
    hopperBackwardCut(of, latent, at, on),
    hopperImportanceCut(of, { headTiles: 1 }, on),
  ];
}

describe("cuts of Hopper's kernels", () => {
  const widths = [64, 80, 96, 128, 144, 192];

  it('fit the card, in steps of 16, with a tile to copy to', () => {
    const found: HopperCut[] = [];
    for (const width of widths)
      for (const rope of [0, 16, 64])
        for (const value of widths)
          for (const window of [1, 100, 512, 2000, 2 ** 30])
            for (const latent of [false, value === width]) {
              const all = cuts(
                shape(width, rope, value),
                latent,
                view({ window }),
              );
              for (const cut of all) if (cut) found.push(cut);
            }
    expect(found.length).toBeGreaterThan(1000);
    for (const { rows, keys, stages, sharedBytes } of found) {
      expect(rows % 64).toBe(0);
      expect(keys % 16).toBe(0);
      expect(keys).toBeGreaterThanOrEqual(32);
      expect(stages).toBeGreaterThanOrEqual(2);
      expect(sharedBytes).toBeLessThanOrEqual(facts.sharedBytes);
    }
  });

  it('take the widths of models', () => {
    for (const [of, latent] of [
      [shape(128, 0, 128), false],
      [shape(64, 0, 64), false],
      [shape(64, 32, 64), false],
      [shape(128, 64, 128), false],
      [shape(128, 64, 128), true],
    ] as const) {
      const found = cuts(of, latent, view());
      // Sums of wider keys leave no registers for one walk.
      expect(found.map((cut) => cut !== undefined)).toEqual([
        ...[true, true, true],
        of.width + of.ropeWidth <= 128,
        true,
      ]);
    }
  });

  it('take odd widths, but the two passes', () => {
    for (const [of, latent] of [
      [shape(56, 32, 56), true],
      [shape(72, 0, 72), false],
    ] as const) {
      const [forward, queries, keys, both, ranking] = cuts(of, latent, view());
      expect(forward).toBeDefined();
      expect(ranking).toBeDefined();
      expect(both).toBeDefined();
      for (const pass of [queries, keys]) expect(pass).toBeUndefined();
    }
  });

  it('have two walks over those that chose a block on a multiprocessor', () => {
    const stages = (of: AttentionShape, latent = false, on = facts) =>
      hopperBlocksTile(of, latent, on)?.stages;
    expect(stages(shape(128, 0, 128))).toBe(2);
    expect(stages(shape(64, 64, 128))).toBe(2);
    expect(stages(shape(64, 32, 64), true)).toBe(3);
    expect(stages(shape(64, 0, 64))).toBe(3);
    expect(stages(shape(128, 64, 128))).toBeUndefined();
    expect(stages(shape(32, 0, 64))).toBeUndefined();
    const small = { ...facts, sharedBytes: 166_912 };
    expect(stages(shape(128, 0, 128), false, small)).toBeUndefined();
    for (const capability of [80, 100]) {
      const other = { ...facts, capability };
      expect(stages(shape(128, 0, 128), false, other)).toBeUndefined();
    }
  });

  it("cut a window's walk with little waste", () => {
    const keys = (window: number) =>
      hopperForwardCut(shape(128, 0, 128), false, view({ window }), facts)
        ?.keys;
    expect(keys(512)).toBe(176);
    expect(keys(120)).toBe(128);
    expect(keys(2 ** 30)).toBe(128);
  });

  it('leave other cards, views and shapes to the other kernels', () => {
    const usual = shape(128, 0, 128);
    const none = Array.from({ length: 5 }, () => undefined);
    for (const capability of [80, 89, 100, 120]) {
      expect(cuts(usual, false, view(), { ...facts, capability })).toEqual(
        none,
      );
    }
    for (const of of [
      shape(48, 0, 48),
      shape(256, 0, 128),
      shape(72, 4, 72),
      { ...usual, dtype: 'f32' as const },
    ]) {
      expect(cuts(of, false, view()).slice(0, 4)).toEqual(none.slice(0, 4));
    }
    const few = view({ rows: 64, keys: 64 });
    const selected = view({ kind: 'SELECTED' });
    for (const at of [few, selected]) {
      expect(cuts(usual, false, at).slice(0, 4)).toEqual(none.slice(0, 4));
    }
    expect(hopperImportanceCut(usual, { headTiles: 2 }, facts)).toBeUndefined();
  });

  it('have a byte of a mask at a time, and no passes for masks', () => {
    const masked = view({ kind: 'MASKED', sharing: 1 });
    for (const [of, isLatent] of [
      [shape(128, 0, 128), false],
      [shape(56, 32, 56), true],
      [shape(128, 64, 128), true],
    ] as const) {
      const [forward, ...passes] = cuts(of, isLatent, masked);
      expect(forward?.keys).toBe(128);
      expect(passes.slice(0, 2)).toEqual([undefined, undefined]);
    }
  });
});

describe('the plan of one walk for all gradients', () => {
  const usual = shape(128, 0, 128);
  const planOf = (at: View, on = facts) => {
    const cut = hopperBackwardCut(usual, false, at, on);
    return cut && hopperPlan(usual, at, cut, on);
  };

  it('shares out triangles by ranges of rows, enough for all and not short', () => {
    for (const at of [
      ...[2048, 8192, 65_536].map((queries) => viewOf(queries)),
      ...[8192, 65_536].map((queries) => viewOf(queries, { stride: 16 })),
    ]) {
      const plan = planOf(at);
      const tiles = (at.sequences.maxQueries * 16) / 64;
      expect(plan?.items).toBe(4 * (plan?.keyTiles ?? 0) * (plan?.ranges ?? 0));
      expect((plan?.range ?? 0) * (plan?.ranges ?? 0)).toBeGreaterThanOrEqual(
        tiles,
      );
      // About half of them have no rows.
      expect(plan?.items).toBeGreaterThan(4 * facts.multiprocessors);
      expect(plan?.range).toBeGreaterThanOrEqual(16);
      expect(plan?.range).toBeLessThanOrEqual(2048);
    }
  });

  it("starts a window's walks at multiples of their length, which no range cuts", () => {
    const plan = planOf(viewOf(65_536, { window: 512 }));
    expect(plan).toMatchObject({ ranges: 1, cycle: 160, items: 2048 });
    // One that is too short for all multiprocessors.
    const few = planOf(viewOf(1024, { window: 512 }));
    expect(few?.ranges).toBeGreaterThan(2);
  });

  it('asks for few sums, of sequences that stand in order', () => {
    const at = viewOf(65_536);
    expect(planOf(at, { ...facts, totalBytes: 2 ** 34 })).toBeUndefined();
    const [a, b] = Sequences.uniform(2, 300).list;
    const swapped = new Sequences([b, a] as never);
    expect(planOf({ ...at, sequences: swapped })).toBeUndefined();
    expect(
      planOf({ ...at, sequences: Sequences.uniform(2, 300) }),
    ).toBeDefined();
  });
});
