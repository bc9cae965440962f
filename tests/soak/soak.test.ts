import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import {
  softwareEnvironment,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

const script = fileURLToPath(
  new URL('../../scripts/soak.mjs', import.meta.url),
);

/** The full length is 10,000 calls and 1,000 cycles; see the script. */
async function soak(backend: string) {
  const options = ['--backend', backend, '--calls', '300', '--cycles', '30'];
  // Rejects when memory grew, or when the process does not end.
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [script, ...options],
    { env: softwareEnvironment(), timeout: 600_000 },
  );
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

const want = [
  { part: 'generate', count: 300, deviceGrowth: 0, buffers: 0, passed: true },
  { part: 'open and destroy', count: 30, passed: true },
];

test('300 texts and 30 devices leave no memory behind on the CPU', async () => {
  expect(await soak('cpu')).toMatchObject(want);
});

test.skipIf(whyNoSoftwareGpu())(
  '300 texts and 30 devices leave no memory behind on WebGPU',
  { timeout: 660_000 },
  async () => {
    expect(await soak('webgpu')).toMatchObject(want);
  },
);
