import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { Scope } from '../scope';
import { compareBits } from '../verify/comparison';
import { download } from '../verify/values';
import type { BenchCase } from './case';
import { normalDraw } from './fill';
import { matmulCase } from './matmul';
import type { BenchProfile } from './profile';

/** What the device can do at best: measured in the same run as all else. */
export function ceilingCases(
  { copyBytes, matrices }: BenchProfile,
  dtypes: readonly FloatType[],
): BenchCase[] {
  const side = matrices.at(-1) ?? 1;
  const square = { rows: side, columns: side, inner: side };
  return [
    copyCase(copyBytes),
    ...dtypes.map((type) =>
      matmulCase('ceilings', 'peak matmul', square, type),
    ),
  ];
}

function copyCase(bytes: number): BenchCase {
  return {
    suite: 'ceilings',
    name: 'copy',
    dtype: 'f32',
    shape: `${bytes / 2 ** 20} MiB`,
    check: { key: 'copy', on: '4096 elements', judge: judgeCopy },
    cost: async () => ({ flops: 0, bytes: 2 * bytes }),
    prepare: async (backend) => {
      const scope = new Scope(backend);
      const from = scope.empty([bytes / 4], 'f32');
      const to = scope.empty([bytes / 4], 'f32');
      return {
        run: () => backend.copy(from.storage, 0, to.storage, 0, bytes / 4),
        free: () => scope.free(),
      };
    },
  };
}

async function judgeCopy(backend: Backend) {
  const scope = new Scope(backend);
  try {
    const from = normalDraw(scope, [4096], 'f32', 1);
    const to = scope.empty([4096], 'f32');
    backend.copy(from.storage, 0, to.storage, 0, 4096);
    return compareBits('copy', await download(to), await download(from));
  } finally {
    scope.free();
  }
}
