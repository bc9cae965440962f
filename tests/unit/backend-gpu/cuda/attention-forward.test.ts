import { Sequences, type Tensor } from '@asa/core';
import { describe, expect, it } from 'vitest';
import { attentionKernels } from '../../../../packages/backend-gpu/src/cuda/kernels/attention';
import type { Launch } from '../../../../packages/backend-gpu/src/cuda/launch';
import { nullContext, nullTensor as tensor } from './null-context';

/** The launches of one attention in bf16: 64 heads, 4 groups, width 128. */
function launchesOf(
  counts: readonly { queries: number; keys: number }[],
  window?: number,
  capability = 90,
): readonly Launch[] {
  const { context, launches } = nullContext({ capability });
  const sequences = Sequences.packed(counts);
  const { queryRows, keyRows } = sequences;
  const q = tensor([queryRows, 64, 128], 'bf16');
  const [k, v] = [1, 2].map(() => tensor([keyRows, 4, 128], 'bf16')) as [
    Tensor,
    Tensor,
  ];
  attentionKernels(context).attention(
    { q, k, v },
    {
      o: tensor([queryRows, 64, 128], 'bf16'),
      lse: tensor([queryRows, 64], 'f32'),
    },
    { sequences, scale: 1, window },
  );
  return launches;
}

/** Blocks of threads of the first launch. */
function blocks(...call: Parameters<typeof launchesOf>): number {
  const [x, y = 1, z = 1] = launchesOf(...call)[0]?.grid ?? [0];
  return x * y * z;
}

const step = (count: number, keys: number) =>
  Array.from({ length: count }, () => ({ queries: 1, keys }));

describe('attention of few rows', () => {
  it('fills the card once with a long walk, and joins it', () => {
    expect(blocks(step(1, 65_536))).toBe(2 * 132);
    const [forward, join] = launchesOf(step(1, 65_536));
    expect(forward?.defines).toMatchObject({ SPLIT: 1, ROWS: 16 });
    expect(join).toMatchObject({ entry: 'joinParts', grid: [64, 4] });
  });

  it('asks for the same at every length that has room', () => {
    for (const keys of [32_769, 50_001, 65_536]) {
      expect(blocks(step(16, keys))).toBe(blocks(step(16, 65_536)));
    }
    expect(blocks(step(16, 32_768))).toBeLessThan(blocks(step(16, 65_536)));
  });

  it('gives each part two tiles of keys or more', () => {
    expect(blocks(step(1, 100), undefined, 80)).toBe(4 * 2);
    expect(blocks(step(1, 65_536), 512, 80)).toBe(4 * 4);
    expect(blocks(step(1, 65_536), 100, 80)).toBe(4);
    // Where one cluster is not enough.
    expect(blocks(step(1, 4096))).toBe(4 * 32);
  });

  it('gives a short walk to one cluster on Hopper, which joins it', () => {
    const of = (...call: Parameters<typeof launchesOf>) =>
      launchesOf(...call).map(({ entry, grid, defines }) => [
        ...[entry, grid[0], defines.CLUSTER, defines.SPLIT],
      ]);
    expect(of(step(1, 65_536), 512)).toEqual([['hopperDecode', 8, 8, 0]]);
    expect(of(step(1, 2048))).toEqual([['hopperDecode', 8, 8, 0]]);
    expect(of(step(1, 100))).toEqual([['hopperDecode', 4, 4, 0]]);
    expect(of(step(20, 65_536), 512)).toEqual([['hopperDecode', 2, 2, 0]]);
    // As many as fill the card, each alone.
    expect(of(step(64, 65_536), 512)).toEqual([['hopperDecode', 1, 1, 0]]);
    expect(of(step(1, 65_536))).toMatchObject([
      ['hopperDecode', 66, 1, 1],
      ['joinParts', 64, undefined, undefined],
    ]);
  });

  it('reads keys twice where their heads have more rows than a tile', () => {
    const queries = (count: number) => [{ queries: count, keys: 65_536 }];
    expect(launchesOf(queries(2), 512)[0]).toMatchObject({
      ...{ entry: 'hopperDecode', grid: [8, 8, 1] },
      defines: { UNIT: 8, KEY_UNITS: 2 },
    });
    expect(launchesOf(queries(4), 512)[0]?.defines.KEY_UNITS).toBe(4);
    // All of the past four times would be too much.
    expect(launchesOf(queries(4))[0]?.entry).toBe('flashForward');
    expect(launchesOf(queries(2))[0]?.entry).toBe('hopperDecode');
  });

  it('cuts long walks of many sequences, to four times the card at most', () => {
    expect(blocks(step(64, 65_536))).toBe(64 * 4 * 4);
    expect(blocks(step(64, 4096))).toBe(64 * 4);
    expect(blocks(step(512, 65_536))).toBe(512 * 4);
  });

  it('leaves a prompt in one walk a tile', () => {
    const counts = [{ queries: 2048, keys: 65_536 }];
    const prompt = launchesOf(counts, undefined, 80);
    expect(prompt).toHaveLength(1);
    expect(prompt[0]?.defines).toMatchObject({ SPLIT: 0, ROWS: 128 });
    expect(launchesOf(counts)).toMatchObject([
      { entry: 'hopperForward', grid: [132], defines: { UNIT: 16 } },
    ]);
  });
});
