import { openCpu } from '@asa/backend-cpu';
import { type GpuJsBackend, openGpuJs } from '@asa/backend-gpu/gpujs';
import { type Backend, type OperatorName, operators } from '@asa/core';
import { differential } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { offerSoftwareGpu } from '../unit/backend-gpu/offer-software-gpu';
import {
  onSystemAdapter,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';
import { continued, story, tinyModels } from './greedy';

const webgpu = {
  mode: 'webgpu',
  cases: 3,
  length: onSystemAdapter ? 64 : 16,
  missing: whyNoSoftwareGpu(),
} as const;

/** WebAssembly is the fastest of them where there is no GPU. */
const modes = onSystemAdapter
  ? [webgpu]
  : ([
      { mode: 'wasm', cases: 12, length: 64, missing: undefined },
      { mode: 'cpu', cases: 6, length: 64, missing: undefined },
      webgpu,
    ] as const);

describe.each(modes)('gpu.js, $mode', ({ mode, cases, length, missing }) => {
  let backend: GpuJsBackend;
  let reference: Backend;

  beforeAll(async () => {
    reference = await openCpu({ poison: true });
    if (missing) return;
    const offer = mode === 'webgpu' ? { offer: offerSoftwareGpu } : {};
    backend = await openGpuJs({ mode, software: true, host: offer });
  });

  afterAll(async () => {
    await backend?.destroy();
    await reference.destroy();
  });

  describe.skipIf(missing)(`compared with the oracle ${missing ?? ''}`, () => {
    test.each(tinyModels)('generates with %s', async (_, config) => {
      const tokens = await continued(backend, config);
      expect(tokens).toHaveLength(40);
      expect(tokens).toEqual(await continued(reference, config));
      expect(backend.memory().bytesInUse).toBe(0);
    });

    test('generates with the embedded model', {
      timeout: 120_000,
    }, async () => {
      const tokens = await story(backend, length);
      expect(tokens).toHaveLength(length);
      expect(tokens).toEqual(await story(reference, length));
      expect(backend.memory().bytesInUse).toBe(0);
    });

    test.for(Object.keys(operators) as OperatorName[])(
      'computes %s',
      async (operator) => {
        const outcome = await differential(
          { backend, reference },
          operator,
          'f32',
          // Most casts are to or from types that gpu.js lacks.
          { seed: 5, cases: operator === 'cast' ? 20 : cases },
        );
        expect(outcome.detail).toBeUndefined();
        expect(outcome.cases).toBeGreaterThan(0);
        // Casts to what gpu.js lacks are the only calls refused.
        if (operator !== 'cast') expect(outcome.missing).toBe(0);
        expect(backend.memory().bytesInUse).toBe(0);
      },
    );
  });
});
