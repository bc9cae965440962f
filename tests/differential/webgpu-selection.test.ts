import { openCpu } from '@asa/backend-cpu';
import { openWebGpu } from '@asa/backend-gpu';
import { operators, Scope, Sequences } from '@asa/core';
import { expect, test } from 'vitest';
import {
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';
import { choose } from './selection';

const reason = whyNoSoftwareGpu();

/** Past 4096 blocks the probabilities no longer fit workgroup memory. */
test.skipIf(reason).each([4096, 4097, 9001])(
  'chooses among %i blocks as the oracle does',
  async (keys) => {
    const choice = {
      ...{ queries: 2, heads: 4, groups: 2, width: 4, scale: 1 },
      ...{ keys, count: 300, period: keys },
    };
    const gpu = await openWebGpu({ gpu: softwareGpu(), poison: true });
    const cpu = await openCpu();
    expect(await choose(gpu, choice)).toEqual(await choose(cpu, choice));
    await gpu.destroy();
    await cpu.destroy();
  },
  120_000,
);

test.skipIf(reason)(
  'chooses the own block where no block is whole',
  async () => {
    const gpu = await openWebGpu({ gpu: softwareGpu(), poison: true });
    const scope = new Scope(gpu);
    // Widths of whole vectors, of which there is none in k.
    const { indices } = scope.run(
      operators.selectBlocks,
      {
        q: scope.tensor(new Float32Array(16).fill(1), [1, 1, 16], 'f32'),
        k: scope.tensor(new Float32Array(0), [0, 1, 16], 'f32'),
        lse: scope.tensor(Float32Array.of(-Infinity), [1, 1], 'f32'),
      },
      {
        ...{ length: 16, stride: 16, blockSize: 16, sharing: 1, scale: 1 },
        ...{ groups: 1, count: 2, initial: 1, local: 1 },
        sequences: Sequences.packed([{ queries: 1, keys: 2 }]),
      },
    );
    expect([...(await scope.read(indices))]).toEqual([0, -1]);
    scope.free();
    await gpu.destroy();
  },
);
