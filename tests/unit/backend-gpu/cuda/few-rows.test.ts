import { describe, expect, it } from 'vitest';
import {
  matmulKernels,
  matmulMany,
} from '../../../../packages/backend-gpu/src/cuda/kernels/matmul';
import { nullContext, nullTensor } from './null-context';

const call = (rows: number, columns: number, inner: number) => ({
  inputs: {
    a: nullTensor([rows, inner], 'bf16'),
    b: nullTensor([columns, inner], 'bf16'),
  },
  outputs: { y: nullTensor([rows, columns], 'bf16') },
  attributes: { transposeB: true },
});

/** What a list of products with one input is launched as. */
function launchesFor(rows: number, inner: number, ...columns: number[]) {
  const { context, launches } = nullContext();
  matmulMany(context).matmul(columns.map((n) => call(rows, n, inner)));
  return launches.map(({ grid, defines }) => [
    ...[grid[0], defines.COLUMNS, defines.HELD],
  ]);
}

describe('products of few rows', () => {
  it('share a launch, a warp a column where there are few', () => {
    const blocks = 128 + 64 + 28 + 4;
    expect(launchesFor(1, 1024, 1024, 512, 224, 32)).toEqual([[blocks, 1, 4]]);
  });

  it('have two columns a warp where there are many', () => {
    expect(launchesFor(1, 1024, 2632, 2632)).toEqual([[330, 2, 4]]);
    expect(launchesFor(2, 1024, 32_000)).toEqual([[2000, 2, 4]]);
    expect(launchesFor(4, 1024, 4400)).toEqual([[275, 2, 4]]);
  });

  it.each([
    [1, 2632, 11],
    [2, 2632, 6],
    [3, 2632, 6],
    [4, 2632, 4],
    [1, 16_384, 11],
    [4, 8, 1],
  ])('%i rows of %i terms: %i pieces at a time', (rows, inner, held) => {
    expect(launchesFor(rows, inner, 1024)).toEqual([[128, 1, held]]);
  });

  it('are nothing else', () => {
    const { context, launches } = nullContext();
    const { matmul } = matmulKernels(context);
    const { inputs, outputs } = call(4, 64, 64);
    matmul(inputs, outputs, {});
    const others = [
      ...[call(5, 8, 64), call(4, 8, 20)],
      // Where cuBLASLt is faster.
      ...[call(1, 14_336, 4096), call(3, 5264, 1024)],
    ];
    for (const { inputs, outputs, attributes } of others) {
      matmul(inputs, outputs, attributes);
    }
    expect(launches).toHaveLength(0);
  });
});
