import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

const source = (path: string) =>
  fileURLToPath(new URL(`packages/${path}`, import.meta.url));

/** Whole names, so that `@asa/core` does not swallow `@asa/core/node`. */
export const sources = [
  { find: /^@asa\/core$/, replacement: source('core/src/index.ts') },
  { find: /^@asa\/core\/node$/, replacement: source('core/src/node.ts') },
  {
    find: /^@asa\/core\/verify$/,
    replacement: source('core/src/verify/index.ts'),
  },
  {
    find: /^@asa\/core\/bench$/,
    replacement: source('core/src/bench/index.ts'),
  },
  {
    find: /^@asa\/backend-gpu\/([a-z]+)$/,
    replacement: source('backend-gpu/src/$1/index.ts'),
  },
  {
    find: /^@asa\/backend-([a-z]+)$/,
    replacement: source('backend-$1/src/index.ts'),
  },
];

/** CUDA's kernels are imported as text, as in the built package. */
export const kernelText = {
  name: 'kernel-text',
  transform: (code: string, id: string) =>
    /\.cuh?$/.test(id) ? `export default ${JSON.stringify(code)}` : undefined,
};

/**
 * Files of half a minute and more, the longest first: a clean checkout has no
 * times of an earlier run, and the last file is one that keeps others waiting.
 */
const long = [
  'differential/cuda-flash',
  'cuda/kernels',
  'differential/webgpu-steps',
  'golden/webgpu',
  'differential/webgpu',
  'differential/webgpu-training',
  'differential/cuda',
  'differential/tfjs',
  'differential/gpujs',
  'property/engine-splits',
  'differential/webgpu-models',
  'differential/webgpu-matmul',
  'differential/cuda-selection',
  'differential/cuda-pieces',
  'end-to-end/cli',
  'differential/cuda-training',
  'golden/gpujs',
  'differential/webgpu-random-models',
  'browser/generate',
  'property/laws-gradients',
  'io/kill',
  'cuda/launches',
];

/** Left to another adapter where `ASA_WEBGPU=operators` says that one has them. */
const wholeModelsOnWebGpu = [
  'tests/golden/webgpu.test.ts',
  'tests/differential/webgpu-{models,random-models,steps,training}.test.ts',
];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]) {
    const rank = ({ moduleId }: TestSpecification) => {
      const at = long.findIndex((name) => moduleId.endsWith(`${name}.test.ts`));
      return at < 0 ? long.length : at;
    };
    const others = await super.sort(files);
    return others.toSorted((a, b) => rank(a) - rank(b));
  }
}

export default defineConfig({
  plugins: [kernelText],
  test: {
    // CI counts the tests from the JSON report.
    reporters: process.env.CI ? ['default', 'json'] : ['default'],
    outputFile: { json: 'reports/vitest.json' },
    // One core less is the default: on two cores that is half of the time.
    maxWorkers: '100%',
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        extends: true,
        resolve: { alias: sources },
        test: {
          name: 'sources',
          include: ['tests/**/*.test.ts'],
          exclude: [
            'tests/{end-to-end,browser,soak}/**',
            ...(process.env.ASA_WEBGPU === 'operators'
              ? wholeModelsOnWebGpu
              : []),
          ],
          // Far above what any test takes: a busy machine is no failure.
          testTimeout: 60_000,
        },
      },
      {
        // No alias: these tests import what a user installs, and run the
        // command that a user runs.
        extends: true,
        test: {
          name: 'built',
          include: ['tests/{end-to-end,browser,soak}/**/*.test.ts'],
          testTimeout: 120_000,
        },
      },
    ],
    coverage: {
      provider: 'v8',
      // A test that fails must not hide what the others cover.
      reportOnFailure: true,
      include: [
        'packages/core/src/**/*.ts',
        'packages/backend-cpu/src/**/*.ts',
      ],
      reporter: ['text-summary', 'json-summary', 'html'],
      thresholds: {
        'packages/core/src/**': { statements: 95 },
        'packages/backend-cpu/src/**': { statements: 95 },
      },
    },
  },
});
