import { describe, expect, it } from 'vitest';
import type { AttentionShape } from '../../../../packages/backend-gpu/src/cuda/kernels/attention-tile';
import {
  type FlashTile,
  flashForwardTile,
  flashKeysTile,
  flashQueriesTile,
} from '../../../../packages/backend-gpu/src/cuda/kernels/flash';

/** Shared memory of a block: Hopper, A100, and the consumers' Ampere. */
const memories = [232_448, 166_912, 101_376];
const widths = [16, 40, 48, 56, 64, 96, 128, 192, 256];
const counts = [1, 16, 17, 32, 33, 64, 65, 1000];

const shape = (
  width: number,
  ropeWidth: number,
  valueWidth: number,
  dtype: AttentionShape['dtype'] = 'bf16',
): AttentionShape => ({
  heads: 16,
  keyHeads: 1,
  width,
  ropeWidth,
  valueWidth,
  dtype,
});

/** Every pass's cut for a shape, those that there are. */
function cuts(
  of: AttentionShape,
  latent: boolean,
  count: number,
  room: number,
) {
  return [
    flashForwardTile(of, latent, count, 64, room),
    flashQueriesTile(of, latent, count, 64, room),
    flashKeysTile(of, latent, count, room),
  ].filter((cut): cut is FlashTile => cut !== undefined);
}

describe('fast tiles of attention', () => {
  it('give every warp whole row tiles and 16 keys, and fit the card', () => {
    let fitting = 0;
    for (const room of memories)
      for (const width of widths)
        for (const rope of [0, 16, 24, 64])
          for (const value of widths)
            for (const latent of [false, value === width])
              for (const count of counts) {
                const of = shape(width, rope, value);
                for (const cut of cuts(of, latent, count, room)) {
                  fitting += 1;
                  const { rows, warps, keys, sharedBytes } = cut;
                  const rowWarps = Math.min(warps, rows / 16);
                  expect(rows % (16 * rowWarps)).toBe(0);
                  expect(warps % rowWarps).toBe(0);
                  expect((keys / (warps / rowWarps)) % 16).toBe(0);
                  // A thread a row fills the tables.
                  expect(rows).toBeLessThanOrEqual(32 * warps);
                  expect(sharedBytes).toBeLessThan(room);
                }
              }
    expect(fitting).toBeGreaterThan(10_000);
  });

  it('take NSA and ASA on Hopper, two blocks of threads at a time', () => {
    for (const [of, latent] of [
      [shape(128, 0, 128), false],
      [shape(128, 64, 128), true],
    ] as const) {
      for (const count of counts) {
        const found = cuts(of, latent, count, memories[0]!);
        expect(found).toHaveLength(3);
        for (const { blocks, sharedBytes } of found) {
          // Each block has 1 KiB besides, and tables.
          const each = sharedBytes + 10 * 1024;
          expect(blocks).toBeGreaterThanOrEqual(2);
          expect(2 * each).toBeLessThanOrEqual(233_472);
        }
      }
    }
  });

  it('leave other types and widths to the kernels of any width', () => {
    const room = memories[0]!;
    for (const of of [
      shape(128, 0, 128, 'f32'),
      shape(76, 0, 128),
      shape(128, 0, 130),
      shape(128, 4, 128),
      shape(512, 64, 512),
    ]) {
      expect(cuts(of, false, 64, room)).toEqual([]);
    }
  });
});
