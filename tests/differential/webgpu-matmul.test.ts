import { openCpu } from '@asa/backend-cpu';
import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu';
import { type Backend, operators, Scope } from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

const reason = whyNoSoftwareGpu();

/**
 * `[M, N, K]`: medium and small tiles, filled and with edges; the inner
 * index in parts, the last one shorter; few rows, aligned and not.
 */
const shapes = [
  [1028, 1056, 32],
  [1027, 1055, 17],
  [132, 260, 1100],
  [64, 32, 48],
  [37, 21, 2063],
  [1, 8, 4],
  [3, 70, 259],
  [4, 132, 1028],
  [2, 2052, 68],
] as const;

const transposes = [
  [false, false],
  [false, true],
  [true, false],
  [true, true],
] as const;

describe.skipIf(reason)(`tiles of matmul on WebGPU ${reason ?? ''}`, () => {
  let gpu: WebGpuBackend;
  let cpu: Backend;
  beforeAll(async () => {
    gpu = await openWebGpu({ gpu: softwareGpu(), poison: true });
    cpu = await openCpu();
  }, 60_000);
  afterAll(async () => {
    await gpu.destroy();
    await cpu.destroy();
  });

  const cases = shapes.flatMap((shape) =>
    transposes.map(([a, b]) => [...shape, a, b] as const),
  );
  test.each(cases)(
    '%i x %i x %i, transposed %s %s: whole numbers are exact',
    async (m, n, k, transposeA, transposeB) => {
      const product = async (backend: Backend) => {
        const scope = new Scope(backend);
        const a = scope.tensor(
          numbers(m * k, 7),
          transposeA ? [k, m] : [m, k],
          'f32',
        );
        const b = scope.tensor(
          numbers(k * n, 5),
          transposeB ? [n, k] : [k, n],
          'f32',
        );
        const attributes = { transposeA, transposeB };
        const { y } = scope.run(operators.matmul, { a, b }, attributes);
        const values = await scope.read(y);
        scope.free();
        return values as Float32Array;
      };
      const [got, want] = [await product(gpu), await product(cpu)];
      expect(got.findIndex((value, i) => value !== want[i])).toBe(-1);
    },
    120_000,
  );
});

/** Small whole numbers without a short period: their sums are exact in f32. */
function numbers(count: number, seed: number): Float32Array {
  return Float32Array.from(
    { length: count },
    (_, i) => ((i * seed + ((i * i) % 101)) % 23) - 11,
  );
}
