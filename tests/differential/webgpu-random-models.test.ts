import { openCpu } from '@asa/backend-cpu';
import { openWebGpu } from '@asa/backend-gpu';
import { verify } from '@asa/core/verify';
import { expect, test } from 'vitest';
import {
  onSystemAdapter,
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

/** `ASA_RUNS` models of each pattern; CI gives another `ASA_SEED` each day. */
const cases = Number(process.env.ASA_RUNS ?? 1);
const seed = Number(process.env.ASA_SEED ?? 1);

test.skipIf(whyNoSoftwareGpu())(
  `models of random shape on WebGPU agree with the oracle, seed ${seed}`,
  // Each shape compiles kernels of its own.
  { timeout: 60_000 + cases * 300_000 },
  async () => {
    const backend = await openWebGpu({ gpu: softwareGpu(), poison: true });
    const reference = await openCpu({ poison: true });
    // SwiftShader compiles so slowly that one pattern of layers has to do.
    const only = onSystemAdapter ? undefined : 'G';
    const options = { backend, reference, cases, seed, only };
    for await (const event of verify({ ...options, suites: ['models'] })) {
      if (event.type !== 'row') continue;
      expect(event.row).toMatchObject({ status: 'ok', cases, missing: 0 });
    }
    expect(backend.memory().bytesInUse).toBe(0);
    await backend.destroy();
    await reference.destroy();
  },
);
