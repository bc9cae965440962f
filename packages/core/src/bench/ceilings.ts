import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { Scope } from '../scope';
import { compareBits } from '../verify/comparison';
import { judgeCall } from '../verify/differential';
import { download } from '../verify/values';
import type { BenchCase } from './case';
import { normalDraw, normalValues } from './fill';
import { matmulCase } from './matmul';
import { costOfStep, prepareStep, type Step } from './operators';
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
    addCase(copyBytes),
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

/** Reads two tensors and writes a third: kernels may be faster than copies. */
function addCase(bytes: number): BenchCase {
  const elements = bytes / 4;
  const step: Step = {
    operator: 'add',
    inputs: { a: [elements], b: [elements] },
    attributes: {},
  };
  return {
    suite: 'ceilings',
    name: 'add',
    dtype: 'f32',
    shape: `${bytes / 2 ** 20} MiB`,
    check: { key: 'add', on: '4096 elements', judge: judgeAdd },
    cost: async () => costOfStep(step, 'f32'),
    prepare: async (backend) =>
      prepareStep(backend, step, 'f32', costOfStep(step, 'f32')),
  };
}

async function judgeAdd(backend: Backend, reference: Backend) {
  const inputs = {
    a: normalValues([4096], 'f32', 1),
    b: normalValues([4096], 'f32', 2),
  };
  const call = { operator: 'add', attributes: {} } as const;
  return judgeCall({ backend, reference }, call, inputs, 'f32');
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
