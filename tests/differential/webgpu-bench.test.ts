import { openCpu } from '@asa/backend-cpu';
import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu/webgpu';
import type { Backend } from '@asa/core';
import { bench, profiles } from '@asa/core/bench';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`bench on WebGPU ${reason ?? ''}`, () => {
  let backend: WebGpuBackend;
  let reference: Backend;
  beforeAll(async () => {
    backend = await openWebGpu({ gpu: softwareGpu() });
    reference = await openCpu({ poison: true });
  }, 30_000);
  afterAll(async () => {
    await backend.destroy();
    await reference.destroy();
  });

  it('checks and times what it is asked for', async () => {
    const before = backend.memory().bytesInUse;
    const names: string[] = [];
    for await (const event of bench({
      ...{ backend, reference, dtypes: ['f32'], contexts: [40] },
      profile: { ...profiles.small, matrices: [64], copyBytes: 2 ** 16 },
      ...{ seconds: 0.001, repetitions: 1 },
      only: ['selectBlocks r=4', 'one row'],
    })) {
      if (event.type !== 'row') continue;
      expect(event.row).toMatchObject({ status: 'ok' });
      names.push(event.row.name);
    }
    expect(names).toEqual([
      'copy',
      'add',
      'peak matmul',
      'matmul of one row',
      'selectBlocks r=4',
    ]);
    expect(backend.memory().bytesInUse).toBe(before);
  }, 120_000);
});
