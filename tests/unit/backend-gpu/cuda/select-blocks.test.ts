import { Sequences } from '@asa/core';
import { describe, expect, it } from 'vitest';
import { selectBlocksKernels } from '../../../../packages/backend-gpu/src/cuda/kernels/select-blocks';
import { nullContext, nullTensor } from './null-context';

const asa = { length: 16, stride: 16, blockSize: 16, count: 64, rope: 64 };
const nsa = { length: 32, stride: 16, blockSize: 64, count: 16, rope: 0 };
const groups = 4;

/** Launches of lists for `queries` of so many sequences, 64 heads in bf16. */
function run(
  { count, rope, ...pooling }: typeof asa,
  batch: number,
  queries: number,
  { keys = 65_536, sharing = 1, holes = false, multiprocessors = 132 } = {},
) {
  const { context, launches } = nullContext({ multiprocessors });
  const packed = Sequences.uniform(batch, queries, keys, {
    ...pooling,
    sharing,
  });
  const sequences = holes
    ? new Sequences(packed.list.map((s) => ({ ...s, leaderStart: 3 })))
    : packed;
  const rows = packed.blockRows(pooling);
  const of = (...shape: number[]) => nullTensor(shape, 'bf16');
  const lists = [sequences.leaderRows(sharing), groups, count];
  selectBlocksKernels(context).selectBlocks(
    {
      q: of(batch * queries, 64, 128),
      k: of(rows, groups, 128),
      qRope: rope ? of(batch * queries, 64, rope) : undefined,
      kRope: rope ? of(rows, 1, rope) : undefined,
      lse: nullTensor([batch * queries, 64], 'f32'),
      previous: nullTensor([batch, groups, count], 'i32'),
    },
    { indices: nullTensor(lists, 'i32') },
    {
      ...{ ...pooling, sequences, groups, sharing, count },
      ...{ scale: 1, initial: 1, local: 2 },
    },
  );
  return launches;
}

const entriesOf = (launches: ReturnType<typeof run>) =>
  launches.map(({ entry }) => entry);

describe('choosing blocks', () => {
  it.each([
    ['ASA', asa, { HELD: 8, BLOCK_STRIDES: 1, LENGTH_STRIDES: 1 }],
    ['NSA', nsa, { HELD: 2, BLOCK_STRIDES: 4, LENGTH_STRIDES: 2 }],
  ])('takes two launches to decode, %s', (_, shape, defines) => {
    const launches = run(shape, 1, 1);
    expect(entriesOf(launches)).toEqual(['blockProbabilities', 'chooseFew']);
    expect(launches[1]).toMatchObject({ defines, grid: [groups, 1, 1] });
  });

  it('gives a list a block of threads while the card has room', () => {
    expect(entriesOf(run(asa, 66, 1))).toContain('chooseFew');
    const many = run(asa, 67, 1);
    expect(entriesOf(many)).toContain('selectBlocks');
    expect(entriesOf(many)).not.toContain('chooseFew');
    const small = run(asa, 1, 1, { multiprocessors: 1 });
    expect(entriesOf(small)).toContain('selectBlocks');
  });

  it('ranks several leaders together, each list of which is few', () => {
    const launches = run(nsa, 1, 8);
    expect(entriesOf(launches)).toEqual(['flashImportance', 'chooseFew']);
    // Of importance as it is.
    const defines = { HELD: 2, BLOCK_STRIDES: 1, LENGTH_STRIDES: 1 };
    expect(launches[1]).toMatchObject({ defines, grid: [8 * groups, 1, 1] });
  });

  it.each([
    [2 ** 18, 32],
    [2 ** 19, 0],
  ])('of %d keys keeps %d ranks a thread', (keys, HELD) => {
    expect(run(asa, 1, 1, { keys }).at(-1)?.defines).toMatchObject({ HELD });
  });

  it('launches the same for every length of about that many keys', () => {
    const shape = (keys: number) =>
      run(asa, 1, 1, { keys, sharing: 4 }).map(
        ({ entry, grid, threads, defines }) => [entry, grid, threads, defines],
      );
    expect(shape(40_001)).toEqual(shape(65_535));
  });

  it('has nothing to do without queries', () => {
    expect(run(asa, 2, 0)).toEqual([]);
  });

  it('fills rows of no sequence, where there are some', () => {
    expect(entriesOf(run(asa, 1, 1, { holes: true }))[0]).toBe('fillBits');
  });
});
