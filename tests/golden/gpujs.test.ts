import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { openGpuJs } from '@asa/backend-gpu/gpujs';
import { openFolder } from '@asa/core/node';
import { verifyAll } from '@asa/core/verify';
import { expect, test } from 'vitest';
import { offerSoftwareGpu } from '../unit/backend-gpu/offer-software-gpu';
import {
  onSystemAdapter,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

const shared = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);
const noFolder = existsSync(shared)
  ? undefined
  : '../shared/golden is not there';

const webgpu = {
  mode: 'webgpu',
  missing: whyNoSoftwareGpu(),
  host: { offer: offerSoftwareGpu },
} as const;

const modes = onSystemAdapter
  ? [webgpu]
  : ([
      { mode: 'wasm', missing: undefined, host: {} },
      { mode: 'cpu', missing: undefined, host: {} },
      webgpu,
    ] as const);

for (const { mode, missing, host } of modes) {
  const reason = noFolder ?? missing;
  test.skipIf(reason)(
    `gpu.js, ${mode}, gives the results of other implementations ${reason ?? ''}`,
    { timeout: 600_000 },
    async () => {
      const backend = await openGpuJs({ mode, software: true, host });
      const reference = await openCpu();
      const golden = await openFolder(shared);
      const options = { backend, reference, golden };
      const report = await verifyAll({ ...options, suites: ['golden'] });
      const isWrong = (status: string) =>
        status !== 'ok' && status !== 'skipped';
      expect(report.rows.filter(({ status }) => isWrong(status))).toEqual([]);
      // Operators, logits, losses, gradients, greedy tokens, training.
      expect(report.counts.ok).toBeGreaterThan(100);
      expect(backend.memory().bytesInUse).toBe(0);
      await backend.destroy();
      await reference.destroy();
    },
  );
}
