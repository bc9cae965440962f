import { describe, expect, it } from 'vitest';
import {
  type AttentionShape,
  tileOf,
} from '../../../../packages/backend-gpu/src/cuda/kernels/attention-tile';

/** Shared memory of a block: Hopper, A100, and the consumers' Ampere. */
const memories = [232_448, 166_912, 101_376];
const widths = [1, 16, 64, 72, 128, 192, 256, 300, 576];
const passes = ['forward', 'queries', 'keys'] as const;

const shape = (
  width: number,
  valueWidth: number,
  dtype: 'f32' | 'bf16',
): AttentionShape => ({
  heads: 1,
  keyHeads: 1,
  width,
  ropeWidth: 0,
  valueWidth,
  dtype,
});

describe('tiles of attention', () => {
  it('hold every column, and fit the memory of the card', () => {
    let fitting = 0;
    for (const pass of passes)
      for (const width of widths)
        for (const valueWidth of widths)
          for (const dtype of ['f32', 'bf16'] as const)
            for (const bytes of memories) {
              const of = shape(width, valueWidth, dtype);
              const tile = tileOf(pass, of, 1000, bytes);
              if (!tile) continue;
              fitting += 1;
              const { warps, others, columns, parts, sharedBytes } = tile;
              const results = {
                forward: valueWidth,
                queries: width,
                keys: Math.max(width, valueWidth),
              }[pass];
              expect(parts * columns).toBeGreaterThanOrEqual(results);
              expect((parts - 1) * columns).toBeLessThan(results);
              expect(sharedBytes).toBeLessThan(bytes);
              // A thread a key, and a thread a row, fill the tables.
              expect(others).toBeLessThanOrEqual(32 * warps);
              expect(others % 16).toBe(0);
            }
    expect(fitting).toBeGreaterThan(800);
  });

  it('serve latent attention of 512 + 64 channels on Hopper in every type', () => {
    for (const pass of passes)
      for (const dtype of ['f32', 'bf16'] as const) {
        expect(tileOf(pass, shape(576, 512, dtype), 64, memories[0]!)).toEqual(
          expect.objectContaining({ parts: expect.any(Number) }),
        );
      }
  });

  it('are smaller where few rows share them', () => {
    const warps = (rows: number) =>
      tileOf('forward', shape(64, 64, 'bf16'), rows, memories[0]!)?.warps;
    expect([1, 16, 17, 32, 33, 64, 1000].map(warps)).toEqual([
      1, 1, 2, 2, 4, 4, 4,
    ]);
  });

  it('are none where the smallest does not fit', () => {
    for (const pass of passes) {
      expect(tileOf(pass, shape(8192, 8192, 'f32'), 64, 232_448)).toBe(
        undefined,
      );
    }
  });
});
