import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { matmulKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/matmul';
import { flawsOf, launchesOf, nullTensor, openNullDevice } from './null-device';

const shapes = [
  [1024, 1024, 512],
  [100, 70, 33],
  [300, 200, 8192],
] as const;
const transposes = [
  [false, false],
  [false, true],
  [true, false],
] as const;
const cases = shapes.flatMap((shape) =>
  transposes.map(([a, b]) => [...shape, a, b] as const),
);

/** Software adapters have no such units: there, only the text can be tried. */
describe('products by matrix units', () => {
  let device: GPUDevice;
  beforeAll(async () => {
    device = await openNullDevice();
  });
  afterAll(() => device.destroy());

  test.each(cases)(
    '%i x %i x %i, transposed %s %s: the WGSL is valid',
    async (m, n, k, transposeA, transposeB) => {
      const launches = launchesOf((context) =>
        matmulKernels(context).matmul(
          {
            a: nullTensor(transposeA ? [k, m] : [m, k]),
            b: nullTensor(transposeB ? [n, k] : [k, n]),
          },
          { y: nullTensor([m, n]) },
          { transposeA, transposeB },
        ),
      );
      expect(launches[0]?.kernel).toBe('gemm-unit');
      for (const launch of launches) {
        expect(await flawsOf(device, launch)).toEqual([]);
      }
    },
  );
});
