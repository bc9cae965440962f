import { type Allocation, type Backend, type DType, Tensor } from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { create, globals } from 'webgpu';
import type { KernelContext } from '../../../packages/backend-gpu/src/webgpu/kernels';
import { matmulKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/matmul';
import {
  type Launch,
  wgslOf,
} from '../../../packages/backend-gpu/src/webgpu/launch';

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
  const holder = globalThis as { asaNullGpu?: GPU };
  let device: GPUDevice;
  beforeAll(async () => {
    Object.assign(globalThis, globals);
    holder.asaNullGpu = create([
      'backend=null',
      'enable-dawn-features=allow_unsafe_apis',
    ]) as GPU;
    const adapter = await holder.asaNullGpu.requestAdapter();
    if (!adapter) throw new Error('Dawn has no null adapter');
    device = await adapter.requestDevice({
      requiredFeatures: [
        'shader-f16',
        'subgroups',
        'chromium-experimental-subgroup-matrix' as GPUFeatureName,
      ],
    });
  });
  afterAll(() => device.destroy());

  test.each(cases)(
    '%i x %i x %i, transposed %s %s: the WGSL is valid',
    async (m, n, k, transposeA, transposeB) => {
      const launches = launchesOf((kernels) =>
        kernels.matmul(
          {
            a: tensor(transposeA ? [k, m] : [m, k]),
            b: tensor(transposeB ? [n, k] : [k, n]),
          },
          { y: tensor([m, n]) },
          { transposeA, transposeB },
        ),
      );
      expect(launches[0]?.kernel).toBe('gemm-unit');
      for (const launch of launches) {
        device.pushErrorScope('validation');
        const module = device.createShaderModule({ code: wgslOf(launch) });
        const { messages } = await module.getCompilationInfo();
        expect(messages.map(({ message }) => message)).toEqual([]);
        expect(await device.popErrorScope()).toBeNull();
      }
    },
  );
});

function launchesOf(
  enqueue: (kernels: ReturnType<typeof matmulKernels>) => void,
): readonly Launch[] {
  const launches: Launch[] = [];
  const context: KernelContext = {
    matrixUnit: { m: 16, n: 16, k: 16, subgroupSize: 32 },
    smallTiles: false,
    run: (launch) => launches.push(launch),
    clear: () => {},
    scratch: (elements, dtype) => tensor([elements], dtype),
  };
  enqueue(matmulKernels(context));
  return launches;
}

function tensor(shape: readonly number[], dtype: DType = 'f16') {
  const allocation: Allocation = {
    backend: { free: () => {} } as unknown as Backend,
    storage: {} as Allocation['storage'],
    freed: false,
  };
  return new Tensor(allocation, shape, dtype);
}
